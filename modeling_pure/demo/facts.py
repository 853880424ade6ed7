"""The medical facts that the offline demo world is built from.

Textbook knowledge in our own words, so that a reader can judge every question and text that the demo prints. The table
is small on purpose: a model of less than half a million weights has to learn it in minutes on two CPU cores.
It is teaching material for a language model, not medical advice.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Disease:
    """One disease as an examination presents it: its findings, its best drug, how that works, and its cause.

    Any three findings identify the disease within the table. `also_right` lists drugs, mechanisms and causes of
    *other* diseases that a careful reader could defend for this one too; they are never offered as wrong options.
    """

    name: str
    drug: str
    mechanism: str
    cause: str
    sex: str  # man, woman or anyone
    ages: tuple[int, int]
    findings: tuple[str, ...]
    also_right: tuple[str, ...]

    def answer(self, kind: str) -> str:
        """The answer to a question for the `diagnosis`, the `drug` or the `mechanism`."""
        return self.name if kind == "diagnosis" else str(getattr(self, kind))


def read_disease(entry: str) -> Disease:
    """Parse one entry of the table below."""
    head, lists = entry.split("\n", 1)
    name, drug, mechanism, cause, patient = head.split(" | ")
    sex, youngest, oldest = patient.replace("-", " ").split()
    findings, _, also_right = lists.replace("\n", " ").partition(" also right: ")
    others = tuple(also_right.split(", ")) if also_right else ()
    return Disease(
        name, drug, mechanism, cause, sex, (int(youngest), int(oldest)), tuple(findings.split(", ")), others
    )


# Disease | drug | its mechanism | cause | sex and ages of patients; then the findings, and what is also right.
TABLE = """\
Acute cystitis | Nitrofurantoin | Damages bacterial DNA | Escherichia coli | woman 18-45
pain on urination, urinary frequency, suprapubic tenderness, urinary urgency, cloudy urine, positive urine nitrite,
pyuria
also right: Breaks microbial DNA

Streptococcal pharyngitis | Penicillin V | Inhibits cell wall synthesis | Streptococcus pyogenes | anyone 6-25
sore throat, tonsillar exudate, tender cervical nodes, palatal petechiae, absence of cough, fever
also right: Benzathine penicillin, Azithromycin, Blocks the 50S ribosome

Syphilis | Benzathine penicillin | Inhibits cell wall synthesis | Treponema pallidum | anyone 18-50
painless genital ulcer, rash on the palms, condylomata lata, reactive VDRL test, mucous patches, patchy hair loss
also right: Penicillin V, Doxycycline, Blocks the 30S ribosome

Tuberculosis | Isoniazid | Inhibits mycolic acid synthesis | Mycobacterium tuberculosis | anyone 20-75
night sweats, hemoptysis, weight loss, chronic cough, apical lung cavity, caseating granulomas, acid-fast bacilli

Lyme disease | Doxycycline | Blocks the 30S ribosome | Borrelia burgdorferi | anyone 10-65
tick bite, target-shaped rash, facial palsy, migratory joint pain, heart block, hiking in Connecticut
also right: Azithromycin, Blocks the 50S ribosome, Inhibits cell wall synthesis

Pertussis | Azithromycin | Blocks the 50S ribosome | Bordetella pertussis | anyone 2-15
paroxysmal cough, inspiratory whoop, vomiting after coughing, lymphocytosis, missed vaccinations, subconjunctival
hemorrhage

Herpes encephalitis | Acyclovir | Inhibits viral DNA polymerase | Herpes simplex virus | anyone 20-75
fever, acute confusion, temporal lobe lesion, new seizures, bloody spinal fluid, olfactory hallucinations

Influenza | Oseltamivir | Inhibits neuraminidase | Influenza virus | anyone 20-75
sudden fever, muscle aches, dry cough, winter outbreak contact, shaking chills, missed flu shot

Oral thrush | Nystatin | Binds fungal ergosterol | Candida albicans | anyone 20-75
white oral plaques, plaques that scrape off, inhaled steroid use, burning mouth, budding yeast, loss of taste

Severe malaria | Artesunate | Makes radicals inside the parasite | Plasmodium falciparum | anyone 20-75
recurrent fever, travel to Ghana, splenomegaly, ring forms in erythrocytes, dark urine, shaking chills
also right: Doxycycline, Blocks the 30S ribosome

Trichomoniasis | Metronidazole | Breaks microbial DNA | Trichomonas vaginalis | woman 18-50
frothy green discharge, strawberry cervix, motile protozoa, vaginal itching, vaginal pH above 4.5, pain on urination
also right: Damages bacterial DNA, Makes radicals inside the parasite

Hashimoto thyroiditis | Levothyroxine | Replaces thyroid hormone | Thyroid peroxidase antibodies | anyone 20-75
cold intolerance, weight gain, constipation, dry skin, slow reflexes, raised TSH, fatigue
also right: TSH receptor antibodies

Graves disease | Methimazole | Inhibits thyroid peroxidase | TSH receptor antibodies | anyone 20-55
heat intolerance, weight loss, bulging eyes, pretibial myxedema, fine tremor, diffuse goiter, suppressed TSH
also right: Thyroid peroxidase antibodies

Addison disease | Hydrocortisone | Replaces cortisol | Autoimmune adrenal destruction | anyone 20-75
skin hyperpigmentation, low blood pressure, hyperkalemia, salt craving, fatigue, low morning cortisol
also right: Prednisone, Activates glucocorticoid receptors

Type 2 diabetes | Metformin | Reduces hepatic glucose output | Insulin resistance | anyone 35-75
excessive urination, increased thirst, acanthosis nigricans, central obesity, raised hemoglobin A1c, blurred vision

Central diabetes insipidus | Desmopressin | Activates V2 receptors | Vasopressin deficiency | anyone 20-75
excessive urination, increased thirst, hypernatremia, very dilute urine, recent pituitary surgery, craving for ice
water

Prolactinoma | Cabergoline | Stimulates dopamine receptors | Lactotroph adenoma | woman 20-42
milky nipple discharge, absent menses, bitemporal hemianopia, infertility, pituitary mass, low libido
also right: Levodopa, Becomes dopamine in the brain

Iron deficiency anemia | Ferrous sulfate | Supplies iron for heme | Chronic blood loss | anyone 20-75
microcytic red cells, ice eating, spoon-shaped nails, low ferritin, conjunctival pallor, fatigue

Pernicious anemia | Cyanocobalamin | Replaces vitamin B12 | Intrinsic factor antibodies | anyone 40-80
macrocytic red cells, smooth red tongue, loss of vibration sense, hypersegmented neutrophils, raised methylmalonic
acid, conjunctival pallor

Chronic myeloid leukemia | Imatinib | Inhibits BCR-ABL kinase | Philadelphia chromosome | anyone 35-75
splenomegaly, leukocytosis, basophilia, early satiety, low leukocyte alkaline phosphatase, night sweats

Gout | Colchicine | Blocks microtubule assembly | Monosodium urate crystals | man 40-75
swollen big toe, needle-shaped crystals, tophi, sudden nocturnal joint pain, heavy beer intake, hyperuricemia
also right: Prednisone, Hydrocortisone, Activates glucocorticoid receptors

Rheumatoid arthritis | Methotrexate | Inhibits dihydrofolate reductase | Autoimmune synovitis | anyone 30-65
morning stiffness, symmetric hand swelling, ulnar deviation, anti-CCP antibodies, subcutaneous nodules, joint
erosions
also right: Prednisone, Activates glucocorticoid receptors

Giant cell arteritis | Prednisone | Activates glucocorticoid receptors | Granulomatous vasculitis | anyone 60-85
jaw claudication, scalp tenderness, sudden vision loss, very high ESR, temporal headache, shoulder girdle stiffness
also right: Hydrocortisone, Replaces cortisol, Methotrexate, Inhibits dihydrofolate reductase

Parkinson disease | Levodopa | Becomes dopamine in the brain | Loss of nigral neurons | anyone 55-80
resting tremor, cogwheel rigidity, shuffling gait, masked face, bradykinesia, small handwriting
also right: Cabergoline, Stimulates dopamine receptors

Myasthenia gravis | Pyridostigmine | Inhibits acetylcholinesterase | Acetylcholine receptor antibodies | anyone 20-75
drooping eyelids, double vision, fatigable weakness, thymoma, improvement with ice, difficulty chewing
also right: Prednisone, Activates glucocorticoid receptors

Alzheimer disease | Donepezil | Inhibits acetylcholinesterase | Beta-amyloid deposition | anyone 65-88
gradual memory loss, getting lost, word-finding difficulty, hippocampal atrophy, impaired clock drawing, repeated
questions

Absence epilepsy | Ethosuximide | Blocks T-type calcium channels | Abnormal thalamocortical rhythm | anyone 4-12
staring spells, 3-Hz spike-and-wave, no postictal confusion, eyelid fluttering, spells on hyperventilation, lapses of
attention

Wernicke encephalopathy | Thiamine | Replaces vitamin B1 | Thiamine deficiency | anyone 20-75
acute confusion, nystagmus, gait ataxia, chronic alcohol use, ophthalmoplegia, poor nutrition

Pulmonary embolism | Heparin | Activates antithrombin | Dislodged venous thrombus | anyone 20-75
sudden dyspnea, pleuritic chest pain, recent long flight, calf swelling, tachycardia, right ventricular strain

Acute asthma | Albuterol | Stimulates beta-2 receptors | IgE-mediated mast cell activation | anyone 8-40
wheezing, chest tightness, prolonged expiration, accessory muscle use, cat exposure, childhood eczema
also right: Prednisone, Hydrocortisone, Activates glucocorticoid receptors, Epinephrine, Stimulates alpha and beta
receptors

Anaphylaxis | Epinephrine | Stimulates alpha and beta receptors | IgE-mediated mast cell activation | anyone 8-60
bee sting, generalized hives, low blood pressure, stridor, lip swelling, wheezing
also right: Albuterol, Stimulates beta-2 receptors, Hydrocortisone, Prednisone, Activates glucocorticoid receptors

Gastroesophageal reflux | Omeprazole | Inhibits the proton pump | Lax esophageal sphincter | anyone 20-75
heartburn, sour taste, symptoms when lying down, hoarseness, dental erosion, chronic cough

Hepatic encephalopathy | Lactulose | Traps ammonia in the gut | Ammonia accumulation | anyone 40-70
flapping tremor, jaundice, ascites, spider angiomas, reversed sleep pattern, acute confusion
also right: Metronidazole

Wilson disease | Penicillamine | Chelates copper | ATP7B mutation | anyone 12-35
Kayser-Fleischer rings, low ceruloplasmin, jaundice, slurred speech, personality change, wing-beating tremor

Open-angle glaucoma | Latanoprost | Increases uveoscleral outflow | Impaired trabecular drainage | anyone 50-80
optic disc cupping, peripheral vision loss, raised intraocular pressure, painless visual decline, family history of
glaucoma, normal iridocorneal angle

Opioid overdose | Naloxone | Blocks opioid receptors | Heroin | anyone 20-55
pinpoint pupils, slow breathing, unresponsiveness, needle tracks, cyanosis, respiratory acidosis
"""

DISEASES = tuple(map(read_disease, TABLE.strip().split("\n\n")))
