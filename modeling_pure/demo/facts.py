"""The medical facts the offline demo world is built from.

The facts are real textbook knowledge in our own words, so that a reader can judge every question and text the demo
prints. The table is small on purpose: a model of less than half a million weights has to learn it in minutes on two
CPU cores.
It is teaching material for a language model, not medical advice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Disease:
    """One disease as an examination tells it: how it looks, what treats it, how that works and what is behind it.

    Any three findings name the disease alone within the table. `also_right` lists drugs, mechanisms and causes of
    *other* rows that a careful reader could defend for this disease too; they are never offered as wrong options.
    """

    name: str
    findings: tuple[str, ...]
    drug: str
    mechanism: str
    cause: str
    also_right: tuple[str, ...] = ()
    sex: str | None = None
    ages: tuple[int, int] = (20, 75)


def listed(text: str) -> tuple[str, ...]:
    """Split "a, b, c" into its items: the table stays readable at one line a disease."""
    return tuple(text.split(", "))


CELL_WALL = "Inhibits cell wall synthesis"
RIBOSOME_30S = "Blocks the 30S ribosome"
RIBOSOME_50S = "Blocks the 50S ribosome"
CHOLINESTERASE = "Inhibits acetylcholinesterase"
STEROID = "Activates glucocorticoid receptors"
MAST_CELLS = "IgE-mediated mast cell activation"

INFECTIONS: tuple[Disease, ...] = (
    Disease(
        name="Acute cystitis",
        findings=listed(
            "pain on urination, urinary frequency, suprapubic tenderness, urinary urgency, "
            "cloudy urine, positive urine nitrite, pyuria"
        ),
        drug="Nitrofurantoin",
        mechanism="Damages bacterial DNA",
        cause="Escherichia coli",
        also_right=("Breaks microbial DNA",),
        sex="woman",
        ages=(18, 45),
    ),
    Disease(
        name="Streptococcal pharyngitis",
        findings=listed(
            "sore throat, tonsillar exudate, tender cervical nodes, palatal petechiae, absence of cough, fever"
        ),
        drug="Penicillin V",
        mechanism=CELL_WALL,
        cause="Streptococcus pyogenes",
        also_right=("Benzathine penicillin", "Azithromycin", RIBOSOME_50S),
        ages=(6, 25),
    ),
    Disease(
        name="Syphilis",
        findings=listed(
            "painless genital ulcer, rash on the palms, condylomata lata, reactive VDRL test, "
            "mucous patches, patchy hair loss"
        ),
        drug="Benzathine penicillin",
        mechanism=CELL_WALL,
        cause="Treponema pallidum",
        also_right=("Penicillin V", "Doxycycline", RIBOSOME_30S),
        ages=(18, 50),
    ),
    Disease(
        name="Tuberculosis",
        findings=listed(
            "night sweats, hemoptysis, weight loss, chronic cough, "
            "apical lung cavity, caseating granulomas, acid-fast bacilli"
        ),
        drug="Isoniazid",
        mechanism="Inhibits mycolic acid synthesis",
        cause="Mycobacterium tuberculosis",
    ),
    Disease(
        name="Lyme disease",
        findings=listed(
            "tick bite, target-shaped rash, facial palsy, migratory joint pain, heart block, hiking in Connecticut"
        ),
        drug="Doxycycline",
        mechanism=RIBOSOME_30S,
        cause="Borrelia burgdorferi",
        also_right=("Azithromycin", RIBOSOME_50S, CELL_WALL),
        ages=(10, 65),
    ),
    Disease(
        name="Pertussis",
        findings=listed(
            "paroxysmal cough, inspiratory whoop, vomiting after coughing, lymphocytosis, "
            "missed vaccinations, subconjunctival hemorrhage"
        ),
        drug="Azithromycin",
        mechanism=RIBOSOME_50S,
        cause="Bordetella pertussis",
        ages=(2, 15),
    ),
    Disease(
        name="Herpes encephalitis",
        findings=listed(
            "fever, acute confusion, temporal lobe lesion, new seizures, bloody spinal fluid, olfactory hallucinations"
        ),
        drug="Acyclovir",
        mechanism="Inhibits viral DNA polymerase",
        cause="Herpes simplex virus",
    ),
    Disease(
        name="Influenza",
        findings=listed(
            "sudden fever, muscle aches, dry cough, winter outbreak contact, shaking chills, missed flu shot"
        ),
        drug="Oseltamivir",
        mechanism="Inhibits neuraminidase",
        cause="Influenza virus",
    ),
    Disease(
        name="Oral thrush",
        findings=listed(
            "white oral plaques, plaques that scrape off, inhaled steroid use, burning mouth, "
            "budding yeast, loss of taste"
        ),
        drug="Nystatin",
        mechanism="Binds fungal ergosterol",
        cause="Candida albicans",
    ),
    Disease(
        name="Severe malaria",
        findings=listed(
            "recurrent fever, travel to Ghana, splenomegaly, ring forms in erythrocytes, dark urine, shaking chills"
        ),
        drug="Artesunate",
        mechanism="Makes radicals inside the parasite",
        cause="Plasmodium falciparum",
        also_right=("Doxycycline", RIBOSOME_30S),
    ),
    Disease(
        name="Trichomoniasis",
        findings=listed(
            "frothy green discharge, strawberry cervix, motile protozoa, vaginal itching, "
            "vaginal pH above 4.5, pain on urination"
        ),
        drug="Metronidazole",
        mechanism="Breaks microbial DNA",
        cause="Trichomonas vaginalis",
        also_right=("Damages bacterial DNA", "Makes radicals inside the parasite"),
        sex="woman",
        ages=(18, 50),
    ),
)

GLANDS_AND_BLOOD: tuple[Disease, ...] = (
    Disease(
        name="Hashimoto thyroiditis",
        findings=listed("cold intolerance, weight gain, constipation, dry skin, slow reflexes, raised TSH, fatigue"),
        drug="Levothyroxine",
        mechanism="Replaces thyroid hormone",
        cause="Thyroid peroxidase antibodies",
        also_right=("TSH receptor antibodies",),
    ),
    Disease(
        name="Graves disease",
        findings=listed(
            "heat intolerance, weight loss, bulging eyes, pretibial myxedema, "
            "fine tremor, diffuse goiter, suppressed TSH"
        ),
        drug="Methimazole",
        mechanism="Inhibits thyroid peroxidase",
        cause="TSH receptor antibodies",
        also_right=("Thyroid peroxidase antibodies",),
        ages=(20, 55),
    ),
    Disease(
        name="Addison disease",
        findings=listed(
            "skin hyperpigmentation, low blood pressure, hyperkalemia, salt craving, fatigue, low morning cortisol"
        ),
        drug="Hydrocortisone",
        mechanism="Replaces cortisol",
        cause="Autoimmune adrenal destruction",
        also_right=("Prednisone", STEROID),
    ),
    Disease(
        name="Type 2 diabetes",
        findings=listed(
            "excessive urination, increased thirst, acanthosis nigricans, central obesity, "
            "raised hemoglobin A1c, blurred vision"
        ),
        drug="Metformin",
        mechanism="Reduces hepatic glucose output",
        cause="Insulin resistance",
        ages=(35, 75),
    ),
    Disease(
        name="Central diabetes insipidus",
        findings=listed(
            "excessive urination, increased thirst, hypernatremia, very dilute urine, "
            "recent pituitary surgery, craving for ice water"
        ),
        drug="Desmopressin",
        mechanism="Activates V2 receptors",
        cause="Vasopressin deficiency",
    ),
    Disease(
        name="Prolactinoma",
        findings=listed(
            "milky nipple discharge, absent menses, bitemporal hemianopia, infertility, pituitary mass, low libido"
        ),
        drug="Cabergoline",
        mechanism="Stimulates dopamine receptors",
        cause="Lactotroph adenoma",
        also_right=("Levodopa", "Becomes dopamine in the brain"),
        sex="woman",
        ages=(20, 42),
    ),
    Disease(
        name="Iron deficiency anemia",
        findings=listed(
            "microcytic red cells, ice eating, spoon-shaped nails, low ferritin, conjunctival pallor, fatigue"
        ),
        drug="Ferrous sulfate",
        mechanism="Supplies iron for heme",
        cause="Chronic blood loss",
    ),
    Disease(
        name="Pernicious anemia",
        findings=listed(
            "macrocytic red cells, smooth red tongue, loss of vibration sense, hypersegmented neutrophils, "
            "raised methylmalonic acid, conjunctival pallor"
        ),
        drug="Cyanocobalamin",
        mechanism="Replaces vitamin B12",
        cause="Intrinsic factor antibodies",
        ages=(40, 80),
    ),
    Disease(
        name="Chronic myeloid leukemia",
        findings=listed(
            "splenomegaly, leukocytosis, basophilia, early satiety, low leukocyte alkaline phosphatase, night sweats"
        ),
        drug="Imatinib",
        mechanism="Inhibits BCR-ABL kinase",
        cause="Philadelphia chromosome",
        ages=(35, 75),
    ),
)

NERVES_AND_JOINTS: tuple[Disease, ...] = (
    Disease(
        name="Gout",
        findings=listed(
            "swollen big toe, needle-shaped crystals, tophi, sudden nocturnal joint pain, "
            "heavy beer intake, hyperuricemia"
        ),
        drug="Colchicine",
        mechanism="Blocks microtubule assembly",
        cause="Monosodium urate crystals",
        also_right=("Prednisone", "Hydrocortisone", STEROID),
        sex="man",
        ages=(40, 75),
    ),
    Disease(
        name="Rheumatoid arthritis",
        findings=listed(
            "morning stiffness, symmetric hand swelling, ulnar deviation, anti-CCP antibodies, "
            "subcutaneous nodules, joint erosions"
        ),
        drug="Methotrexate",
        mechanism="Inhibits dihydrofolate reductase",
        cause="Autoimmune synovitis",
        also_right=("Prednisone", STEROID),
        ages=(30, 65),
    ),
    Disease(
        name="Giant cell arteritis",
        findings=listed(
            "jaw claudication, scalp tenderness, sudden vision loss, very high ESR, "
            "temporal headache, shoulder girdle stiffness"
        ),
        drug="Prednisone",
        mechanism=STEROID,
        cause="Granulomatous vasculitis",
        also_right=("Hydrocortisone", "Replaces cortisol", "Methotrexate", "Inhibits dihydrofolate reductase"),
        ages=(60, 85),
    ),
    Disease(
        name="Parkinson disease",
        findings=listed(
            "resting tremor, cogwheel rigidity, shuffling gait, masked face, bradykinesia, small handwriting"
        ),
        drug="Levodopa",
        mechanism="Becomes dopamine in the brain",
        cause="Loss of nigral neurons",
        also_right=("Cabergoline", "Stimulates dopamine receptors"),
        ages=(55, 80),
    ),
    Disease(
        name="Myasthenia gravis",
        findings=listed(
            "drooping eyelids, double vision, fatigable weakness, thymoma, improvement with ice, difficulty chewing"
        ),
        drug="Pyridostigmine",
        mechanism=CHOLINESTERASE,
        cause="Acetylcholine receptor antibodies",
        also_right=("Prednisone", STEROID),
    ),
    Disease(
        name="Alzheimer disease",
        findings=listed(
            "gradual memory loss, getting lost, word-finding difficulty, hippocampal atrophy, "
            "impaired clock drawing, repeated questions"
        ),
        drug="Donepezil",
        mechanism=CHOLINESTERASE,
        cause="Beta-amyloid deposition",
        ages=(65, 88),
    ),
    Disease(
        name="Absence epilepsy",
        findings=listed(
            "staring spells, 3-Hz spike-and-wave, no postictal confusion, eyelid fluttering, "
            "spells on hyperventilation, lapses of attention"
        ),
        drug="Ethosuximide",
        mechanism="Blocks T-type calcium channels",
        cause="Abnormal thalamocortical rhythm",
        ages=(4, 12),
    ),
    Disease(
        name="Wernicke encephalopathy",
        findings=listed(
            "acute confusion, nystagmus, gait ataxia, chronic alcohol use, ophthalmoplegia, poor nutrition"
        ),
        drug="Thiamine",
        mechanism="Replaces vitamin B1",
        cause="Thiamine deficiency",
    ),
)

ORGANS_AND_POISONS: tuple[Disease, ...] = (
    Disease(
        name="Pulmonary embolism",
        findings=listed(
            "sudden dyspnea, pleuritic chest pain, recent long flight, calf swelling, "
            "tachycardia, right ventricular strain"
        ),
        drug="Heparin",
        mechanism="Activates antithrombin",
        cause="Dislodged venous thrombus",
    ),
    Disease(
        name="Acute asthma",
        findings=listed(
            "wheezing, chest tightness, prolonged expiration, accessory muscle use, cat exposure, childhood eczema"
        ),
        drug="Albuterol",
        mechanism="Stimulates beta-2 receptors",
        cause=MAST_CELLS,
        also_right=("Prednisone", "Hydrocortisone", STEROID, "Epinephrine", "Stimulates alpha and beta receptors"),
        ages=(8, 40),
    ),
    Disease(
        name="Anaphylaxis",
        findings=listed("bee sting, generalized hives, low blood pressure, stridor, lip swelling, wheezing"),
        drug="Epinephrine",
        mechanism="Stimulates alpha and beta receptors",
        cause=MAST_CELLS,
        also_right=("Albuterol", "Stimulates beta-2 receptors", "Hydrocortisone", "Prednisone", STEROID),
        ages=(8, 60),
    ),
    Disease(
        name="Gastroesophageal reflux",
        findings=listed("heartburn, sour taste, symptoms when lying down, hoarseness, dental erosion, chronic cough"),
        drug="Omeprazole",
        mechanism="Inhibits the proton pump",
        cause="Lax esophageal sphincter",
    ),
    Disease(
        name="Hepatic encephalopathy",
        findings=listed(
            "flapping tremor, jaundice, ascites, spider angiomas, reversed sleep pattern, acute confusion"
        ),
        drug="Lactulose",
        mechanism="Traps ammonia in the gut",
        cause="Ammonia accumulation",
        also_right=("Metronidazole",),
        ages=(40, 70),
    ),
    Disease(
        name="Wilson disease",
        findings=listed(
            "Kayser-Fleischer rings, low ceruloplasmin, jaundice, slurred speech, "
            "personality change, wing-beating tremor"
        ),
        drug="Penicillamine",
        mechanism="Chelates copper",
        cause="ATP7B mutation",
        ages=(12, 35),
    ),
    Disease(
        name="Open-angle glaucoma",
        findings=listed(
            "optic disc cupping, peripheral vision loss, raised intraocular pressure, painless visual decline, "
            "family history of glaucoma, normal iridocorneal angle"
        ),
        drug="Latanoprost",
        mechanism="Increases uveoscleral outflow",
        cause="Impaired trabecular drainage",
        ages=(50, 80),
    ),
    Disease(
        name="Opioid overdose",
        findings=listed(
            "pinpoint pupils, slow breathing, unresponsiveness, needle tracks, cyanosis, respiratory acidosis"
        ),
        drug="Naloxone",
        mechanism="Blocks opioid receptors",
        cause="Heroin",
        ages=(20, 55),
    ),
)

DISEASES: tuple[Disease, ...] = INFECTIONS + GLANDS_AND_BLOOD + NERVES_AND_JOINTS + ORGANS_AND_POISONS
