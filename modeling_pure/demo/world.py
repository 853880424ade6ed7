"""Write the offline demo world: four kinds of text and three exam files, all from one table of facts.

The exam asks about *combinations*: three findings of one disease. A seed splits the combinations into train, dev and
held-out. A dev or held-out combination is asked in its own file only, and no text tells it, so answering it right
takes the facts and the skill of pointing at an option, not the memory of a question. Every document is about one
disease and one train combination; that is the whole mechanism behind the promise, and a test reads the files back.

The exam asks for the disease (one step from the findings), for its best drug (two) and for how that drug works
(three). Of every third disease the last is asked in dev and held-out only: no train question joins its three steps.
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..medqa.formats import format_answer, format_prompt
from ..medqa.questions import LETTERS, Question, question_from_record
from ..tokenizer import PAD_TOKEN
from .facts import DISEASES, Disease

END_OF_TEXT = "<|endoftext|>"
TEXT_FILES = ("textbook.jsonl", "web.jsonl", "general.jsonl")
EXAM_FILES = ("exam_train.jsonl", "exam_dev.jsonl", "exam_heldout.jsonl")

ASKED = {"diagnosis": "Most likely diagnosis?", "drug": "Best drug?", "mechanism": "Mechanism of the best drug?"}
REASONS = {"diagnosis": "{name}.", "drug": "{name}, so {drug}.", "mechanism": "{name}, so {drug}."}
HELDOUT, DEV = 0.35, 0.15  # shares of the combinations
NEVER_ASKED = tuple(disease.name for disease in DISEASES[1::3])  # for the mechanism, in train
NEVER_ASKED_INFO = "mechanism, never asked"  # in `meta_info` of those questions
VIGNETTE = "A {person} has {findings}."
TREATMENT = "A {person} takes {drug} for {days} days. Mechanism of {drug}?"
TEXTBOOK = (
    "{name}. Cause: {cause}. Findings: {findings}. Treatment: {drug}. Mechanism: {mechanism}.",
    "{name} presents with {findings}. The drug of choice is {drug}. Mechanism of {drug}: {mechanism}.",
    "A patient with {findings} has {name}. The cause is as follows: {cause}. The best drug is {drug}.",
    "{findings}: this is {name}. Cause of {name}: {cause}. Best drug for {name}: {drug}.",
)
WEB = (
    "Study tip: {findings} should make you think of {name}. What causes it? {cause}. What treats it? {drug}.",
    "My doctor asked about {findings}. It was {name}! I now take {drug}. How does it work? {mechanism}.",
    "Quick review of {name}. Look for {findings}. Give {drug}. Why does it help? {mechanism}.",
    "Nurses ask: what is {name}? You may see {findings}. The cause? {cause}. The treatment? {drug}.",
)
QUIZ = {"drug": "Best drug for {name}?", "mechanism": "Mechanism of {drug}?"}
QUIZ_SHARE = 0.7  # of the web and general texts
QUIZ_FORMATS = {"text": 0.8, "letter": 0.2}
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas")
DEEDS = ("bought", "found", "painted", "carried", "cleaned", "borrowed", "lost", "liked")
LOOKS = ("red", "old", "small", "green", "heavy", "new", "blue", "round")
THINGS = ("bicycle", "basket", "book", "lamp", "chair", "kite", "coat", "boat", "cup", "drum")
PLACES = ("near the river", "at the market", "in the garden", "behind the school", "by the station", "on the hill")
TIMES = ("In the morning", "After lunch", "On Sunday", "Before supper", "Last week", "One evening")


class Combination(NamedTuple):
    """Three findings of one disease: the unit that is split, asked about and told."""

    disease: Disease
    findings: tuple[str, ...]


class Split(NamedTuple):
    """The combinations of each exam file, in the order of `EXAM_FILES`; the files share none."""

    train: list[Combination]
    dev: list[Combination]
    heldout: list[Combination]


def split_combinations(seed: int = 0) -> Split:
    """Split each disease's combinations separately, so that every file asks about every disease."""
    draw = random.Random(f"split {seed}")
    split = Split([], [], [])
    for disease in DISEASES:
        combinations = [Combination(disease, three) for three in itertools.combinations(disease.findings, 3)]
        draw.shuffle(combinations)
        heldout, dev = (round(len(combinations) * share) for share in (HELDOUT, HELDOUT + DEV))
        split.heldout.extend(combinations[:heldout])
        split.dev.extend(combinations[heldout:dev])
        split.train.extend(combinations[dev:])
    return split


def write_world(folder: Path, seed: int = 0, documents: int = 8000) -> None:
    """Write three text files of `documents` lines each and the three exam files; the same seed, the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    split = split_combinations(seed)
    book, web, general = (random.Random(f"{name} {seed}") for name in TEXT_FILES)
    streams = (medical_texts(split.train, TEXTBOOK, book), web_texts(split.train, web), general_texts(general))
    for name, texts in zip(TEXT_FILES, streams, strict=True):
        write_records(folder / name, ({"text": text} for text in itertools.islice(texts, documents)))
    for name, combinations in zip(EXAM_FILES, split, strict=True):
        questions = exam_records(combinations, combinations is split.train, random.Random(f"{name} {seed}"))
        write_records(folder / name, questions)


def write_records(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def train_tokenizer(files: Iterable[Path], folder: Path, vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a GPT-2 style byte-level BPE on the world's files and save it as a tokenizer folder.

    Exam files are read as the text a model sees, so that the answer letters become single tokens, as scoring by letter
    needs.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(read_texts(files), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD_TOKEN
    )
    for letter in LETTERS:
        assert len(tokenizer.encode(f" {letter}")) == 1, f"the answer letter {letter} is not a single token"
    tokenizer.save_pretrained(folder)
    return tokenizer


def read_texts(files: Iterable[Path]) -> Iterator[str]:
    """The texts of the world's files, exam questions as the text a model sees."""
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            yield record["text"] if "text" in record else exam_text(question_from_record(record), "letter")


def exam_text(question: Question, answer_format: str) -> str:
    """A question as the exam lays it out, with its answer."""
    return format_prompt(question, answer_format) + format_answer(question, answer_format)


def medical_texts(combinations: list[Combination], templates: Sequence[str], draw: random.Random) -> Iterator[str]:
    """Tell every combination about equally often, in an order that keeps texts on one disease apart; endless."""
    while True:
        for disease, findings in draw.sample(combinations, len(combinations)):
            template = draw.choice(templates)
            text = template.format(**{**vars(disease), "findings": told(findings, draw)})
            yield text[0].upper() + text[1:]


def told(findings: tuple[str, ...], draw: random.Random) -> str:
    """Three findings in any order: `a, b and c`."""
    return "{}, {} and {}".format(*draw.sample(findings, 3))


def web_texts(combinations: list[Combination], draw: random.Random) -> Iterator[str]:
    """Endless medical prose in everyday words, and medical quizzes.

    Quizzes teach a tiny model what letters and options are long before it knows any medicine; without them the demo
    would need several times the tokens.
    """
    prose = medical_texts(combinations, WEB, draw)
    while True:
        yield medical_quiz(draw) if draw.random() < QUIZ_SHARE else next(prose)


def general_texts(draw: random.Random) -> Iterator[str]:
    """Endless everyday stories and quizzes, without medicine."""
    while True:
        yield everyday_quiz(draw) if draw.random() < QUIZ_SHARE else everyday_story(draw)


def medical_quiz(draw: random.Random) -> str:
    """A quiz as on study pages: it names a disease or a drug, and tells no findings."""
    disease, kind = draw.choice(DISEASES), draw.choice(tuple(ASKED))
    answer, asks_for_fact = disease.answer(kind), kind in QUIZ and draw.random() < 0.8
    own = {disease.name, disease.drug, disease.mechanism, disease.cause, *disease.also_right}
    wrong: dict[str, None] = {}
    while len(wrong) < len(LETTERS) - 1:
        option = other_option(kind, draw)
        if option not in own:
            wrong[option] = None
    stem = QUIZ[kind].format(**vars(disease)) if asks_for_fact else f"{answer}?"
    return quiz(stem, answer, list(wrong), draw)


def other_option(kind: str, draw: random.Random) -> str:
    """An everyday thing, a medical term of any kind, or one of the kind that is asked for.

    Telling a drug from a lamp is easier than telling it from another drug: with all three, pointing at the right
    option is learned in steps. With options of the asked kind alone, two seeds of three were near chance after 4M
    tokens in a trial.
    """
    other = draw.choice(DISEASES)
    any_kind = draw.choice((other.name, other.drug, other.mechanism, other.cause))
    return draw.choices((everyday_thing(draw), any_kind, other.answer(kind)), (0.4, 0.3, 0.3))[0]


def everyday_story(draw: random.Random) -> str:
    """Two or three everyday sentences about one person and one thing."""
    person, thing, look = draw.choice(PEOPLE), draw.choice(THINGS), draw.choice(LOOKS)
    story = f"{draw.choice(TIMES)} {person} {draw.choice(DEEDS)} a {look} {thing} {draw.choice(PLACES)}."
    story += f" {draw.choice(TIMES)} {draw.choice(PEOPLE)} {draw.choice(DEEDS)} the {look} {thing}."
    return story + (f" The {thing} of {person} was {look}." if draw.random() < 0.5 else "")


def everyday_quiz(draw: random.Random) -> str:
    """Point at the option that is named: the smallest lesson in what letters and options are."""
    things: dict[str, None] = {}
    while len(things) < len(LETTERS):
        things[everyday_thing(draw)] = None
    thing, *wrong = things
    return quiz(f"{thing}?", thing, wrong, draw)


def everyday_thing(draw: random.Random) -> str:
    """An everyday thing of one to three words, so that options do not always stand at the same places of a quiz."""
    looks = draw.sample(LOOKS, draw.choices((0, 1, 2), (0.4, 0.35, 0.25))[0])
    return " ".join((*looks, draw.choice(THINGS)))


def quiz(question: str, answer: str, wrong: list[str], draw: random.Random) -> str:
    """A short question in the layout of the exam, with its answer, and with two, three or four options.

    A choice between two is the step by which a tiny model finds out what letters are for: in a trial on quizzes alone
    it pointed at 85 % of the right options after 1.4M tokens, and at 35 % with four options in every quiz.
    """
    number = draw.randint(2, len(LETTERS))
    options = draw.sample([answer, *wrong[: number - 1]], number)
    answer_format = draw.choices([*QUIZ_FORMATS], [*QUIZ_FORMATS.values()])[0]
    return exam_text(Question(question, tuple(options), options.index(answer)), answer_format)


def exam_records(combinations: list[Combination], is_train: bool, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Ask about every combination in every kind; the answer letters are dealt out, not drawn, so they balance exactly.

    Half of train's questions for a mechanism, and all of those that it never asks in three steps, name the drug, so
    that one step is left. If they did not, a mechanism that is never asked would be a wrong option only, and a model
    would learn never to choose it.
    """
    asked = [(*combination, kind) for combination in combinations for kind in ASKED]
    draw.shuffle(asked)
    letters = [LETTERS[i % len(LETTERS)] for i in range(len(asked))]
    draw.shuffle(letters)
    stems: set[str] = set()
    for (disease, findings, kind), letter in zip(asked, letters, strict=True):
        never_asked = kind == "mechanism" and disease.name in NEVER_ASKED
        if is_train and kind == "mechanism" and (never_asked or draw.random() < 0.5):
            while (stem := treatment(disease, draw)) in stems:
                pass
            stems.add(stem)
            reason, meta_info = f"{disease.drug}.", "mechanism of a named drug"
        else:
            stem = f"{vignette(disease, findings, draw)} {ASKED[kind]}"
            reason = REASONS[kind].format(**vars(disease))
            meta_info = NEVER_ASKED_INFO if never_asked else kind
        answer, wrong = disease.answer(kind), iter(draw.sample(wrong_answers(disease, kind), len(LETTERS) - 1))
        yield {
            "question": stem,
            "answer": answer,
            "options": {each: answer if each == letter else next(wrong) for each in LETTERS},
            "answer_idx": letter,
            "meta_info": meta_info,
            "explanation": reason,
        }


def treatment(disease: Disease, draw: random.Random) -> str:
    """A question for the mechanism of a disease's drug by the drug's name."""
    return TREATMENT.format(person=draw.choice(("man", "woman")), drug=disease.drug, days=draw.randint(2, 60))


def vignette(disease: Disease, findings: tuple[str, ...], draw: random.Random) -> str:
    """A patient with three findings of a disease."""
    sex = draw.choice(("man", "woman")) if disease.sex == "anyone" else disease.sex
    person = {"man": "boy", "woman": "girl"}[sex] if draw.randint(*disease.ages) < 18 else sex
    return VIGNETTE.format(person=person, findings=told(findings, draw))


def wrong_answers(disease: Disease, kind: str) -> list[str]:
    """Every value of the table that is certainly wrong, sorted so that a seed means the same on each machine.

    No other disease has the three findings of a question (the table promises it), so any other diagnosis is wrong.
    """
    right = {disease.answer(kind), *disease.also_right}
    return sorted({other.answer(kind) for other in DISEASES} - right)
