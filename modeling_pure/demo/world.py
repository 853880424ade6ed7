"""Write the offline demo world: four kinds of text and three exam files, all from one table of facts.

The exam asks about *combinations*: three findings of one disease. A seed splits the combinations into train, dev and
held-out. A dev or held-out combination is asked in its own file only, and no text tells it, so answering it right
takes the facts and the skill of pointing at an option, not the memory of a question. Every document is about one
disease and one train combination; that is the whole mechanism behind the promise, and a test reads the files back.

The exam asks for the disease (one step from the findings), for its best drug (two) and for how that drug works
(three). Of every third disease the last is asked in dev and held-out only: no train question joins its three steps.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
NEVER_ASKED = tuple(disease.name for disease in DISEASES[1::3])  # for the mechanism, in train
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
QUIZ_FORMATS = {"text": 0.8, "letter": 0.2}
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas")
DEEDS = ("bought", "found", "painted", "carried", "cleaned", "borrowed", "lost", "liked")
LOOKS = ("red", "old", "small", "green", "heavy", "new", "blue", "round")
THINGS = ("bicycle", "basket", "book", "lamp", "chair", "kite", "coat", "boat", "cup", "drum")
PLACES = ("near the river", "at the market", "in the garden", "behind the school", "by the station", "on the hill")
TIMES = ("In the morning", "After lunch", "On Sunday", "Before supper", "Last week", "One evening")


@dataclass(frozen=True)
class Combination:
    """Three findings of one disease: the unit that is split, asked and told."""

    disease: Disease
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """The combinations of each exam file; they share none."""

    train: tuple[Combination, ...]
    dev: tuple[Combination, ...]
    heldout: tuple[Combination, ...]


def split_combinations(seed: int = 0, dev_share: float = 0.15, heldout_share: float = 0.35) -> Split:
    """Split every disease's combinations by itself, so that each disease is trained on and asked in every file."""
    draw = random.Random(f"split {seed}")
    train: list[Combination] = []
    dev: list[Combination] = []
    heldout: list[Combination] = []
    for disease in DISEASES:
        combinations = [Combination(disease, three) for three in itertools.combinations(disease.findings, 3)]
        draw.shuffle(combinations)
        first, second = (
            round(len(combinations) * heldout_share),
            round(len(combinations) * (heldout_share + dev_share)),
        )
        heldout += combinations[:first]
        dev += combinations[first:second]
        train += combinations[second:]
    return Split(tuple(train), tuple(dev), tuple(heldout))


def write_world(folder: Path, seed: int = 0, documents: int = 8000, quiz_share: float = 0.7) -> None:
    """Write three text files of `documents` lines each and the three exam files; the same seed, the same bytes.

    `quiz_share` of the web and general documents are small quizzes. They teach a tiny model what letters and options
    are long before it knows any medicine; without them the demo would need several times the tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = split_combinations(seed)
    for name, texts in _text_streams(split.train, quiz_share, seed).items():
        _write(folder / name, ({"text": text} for text in itertools.islice(texts, documents)))
    for name, combinations in zip(EXAM_FILES, (split.train, split.dev, split.heldout), strict=True):
        _write(folder / name, _questions(combinations, name == EXAM_FILES[0], random.Random(f"{name} {seed}")))


def train_tokenizer(files: Iterable[Path], folder: Path, vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a GPT-2 style byte-level BPE on the world's files and save it as a tokenizer folder.

    Exam files are read as the text a model sees, so that the answer letters become single tokens, which scoring by
    letter needs; that is asserted here rather than found out in a report.
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
    bpe.train_from_iterator(_texts(files), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD_TOKEN
    )
    for letter in LETTERS:
        assert len(tokenizer.encode(f" {letter}")) == 1, f"the answer letter {letter} is not a single token"
    tokenizer.save_pretrained(folder)
    return tokenizer


def _text_streams(train: tuple[Combination, ...], quiz_share: float, seed: int) -> dict[str, Iterator[str]]:
    """The endless texts of each file, every file with a draw of its own."""
    book, web, general = (random.Random(f"{name} {seed}") for name in TEXT_FILES)
    prose = _medical_texts(train, WEB, web)
    return {
        "textbook.jsonl": _medical_texts(train, TEXTBOOK, book),
        "web.jsonl": (_web_quiz(web) if web.random() < quiz_share else next(prose) for _ in itertools.count()),
        "general.jsonl": (
            _general_quiz(general) if general.random() < quiz_share else _general_story(general)
            for _ in itertools.count()
        ),
    }


def _medical_texts(
    combinations: tuple[Combination, ...], templates: tuple[str, ...], draw: random.Random
) -> Iterator[str]:
    """Tell every combination about equally often, in an order that keeps texts on one disease apart."""
    rounds = itertools.chain.from_iterable(draw.sample(combinations, len(combinations)) for _ in itertools.count())
    for combination in rounds:
        disease = combination.disease
        text = draw.choice(templates).format(
            name=disease.name,
            drug=disease.drug,
            mechanism=disease.mechanism,
            cause=disease.cause,
            findings=_told(combination.findings, draw),
        )
        yield text[0].upper() + text[1:]


def _told(findings: tuple[str, ...], draw: random.Random) -> str:
    first, second, third = draw.sample(findings, len(findings))
    return f"{first}, {second} and {third}"


def _web_quiz(draw: random.Random) -> str:
    """A quiz line as study pages have them; it names a disease or a drug and tells no findings."""
    disease, kind = draw.choice(DISEASES), draw.choice(tuple(ASKED))
    answer, asks_for_fact = _value(disease, kind), kind in QUIZ and draw.random() < 0.8
    own = {disease.name, disease.drug, disease.mechanism, disease.cause, *disease.also_right}
    candidates = (_other_option(kind, draw) for _ in itertools.count())
    wrong = _distinct((option for option in candidates if option not in own), len(LETTERS) - 1)
    stem = QUIZ[kind].format(name=disease.name, drug=disease.drug) if asks_for_fact else f"{answer}?"
    return _quiz(stem, answer, wrong, draw)


def _other_option(kind: str, draw: random.Random) -> str:
    """An everyday thing, a medical term of any kind, or one of the kind that is asked for.

    Telling a drug from a lamp is easier than telling it from another drug: with all three, pointing at the right
    option is learned in steps. With options of the asked kind alone, two seeds of three were near chance after 4M
    tokens in a trial.
    """
    other = draw.choice(DISEASES)
    any_kind = draw.choice((other.name, other.drug, other.mechanism, other.cause))
    return draw.choices((_phrase(draw), any_kind, _value(other, kind)), (0.4, 0.3, 0.3))[0]


def _general_story(draw: random.Random) -> str:
    """Two or three everyday sentences about one person and one thing."""
    person, thing, look = draw.choice(PEOPLE), draw.choice(THINGS), draw.choice(LOOKS)
    sentences = [f"{draw.choice(TIMES)} {person} {draw.choice(DEEDS)} a {look} {thing} {draw.choice(PLACES)}."]
    sentences.append(f"{draw.choice(TIMES)} {draw.choice(PEOPLE)} {draw.choice(DEEDS)} the {look} {thing}.")
    if draw.random() < 0.5:
        sentences.append(f"The {thing} of {person} was {look}.")
    return " ".join(sentences)


def _general_quiz(draw: random.Random) -> str:
    """Point at the option that is named: the smallest lesson in what letters and options are."""
    thing, *wrong = _distinct((_phrase(draw) for _ in itertools.count()), len(LETTERS))
    return _quiz(f"{thing}?", thing, wrong, draw)


def _phrase(draw: random.Random) -> str:
    """An everyday thing of one to three words, so that options do not always stand at the same places of a quiz."""
    looks = draw.sample(LOOKS, draw.choices((0, 1, 2), (0.4, 0.35, 0.25))[0])
    return " ".join((*looks, draw.choice(THINGS)))


def _distinct(items: Iterator[str], number: int) -> list[str]:
    """The first `number` different items."""
    found: dict[str, None] = {}
    while len(found) < number:
        found[next(items)] = None
    return list(found)


def _quiz(question: str, answer: str, wrong: list[str], draw: random.Random) -> str:
    """A short question in the layout of the exam, with its answer, and with two, three or four options.

    A choice between two is the step by which a tiny model finds out what letters are for: in a trial on quizzes alone
    it pointed at 85 % of the right options after 1.4M tokens, and at 35 % with four options in every quiz.
    """
    number = draw.randint(2, len(LETTERS))
    options = draw.sample([answer, *wrong[: number - 1]], number)
    answer_format = draw.choices([*QUIZ_FORMATS], [*QUIZ_FORMATS.values()])[0]
    return _exam_text(Question(question, tuple(options), options.index(answer)), answer_format)


def _questions(
    combinations: tuple[Combination, ...], is_train: bool, draw: random.Random
) -> Iterator[dict[str, object]]:
    """Ask every combination in every kind; the answer letters are dealt out, not drawn, so they balance exactly.

    Half of train's questions for a mechanism, and all of those that it never asks in three steps, name the drug, so
    that one step is left. If they did not, a mechanism that is never asked would be a wrong option only, and a model
    would learn never to choose it.
    """
    asked = [(combination, kind) for combination in combinations for kind in ASKED]
    draw.shuffle(asked)
    letters = [LETTERS[i % len(LETTERS)] for i in range(len(asked))]
    draw.shuffle(letters)
    told: set[str] = set()
    for (combination, kind), letter in zip(asked, letters, strict=True):
        disease = combination.disease
        never_asked = kind == "mechanism" and disease.name in NEVER_ASKED
        if is_train and kind == "mechanism" and (never_asked or draw.random() < 0.5):
            stem = next(stem for stem in _treatments(disease, draw) if stem not in told)
            told.add(stem)
            yield _question(disease, kind, stem, f"{disease.drug}.", "mechanism of a named drug", letter, draw)
        else:
            stem = f"{_vignette(combination, draw)} {ASKED[kind]}"
            reason = REASONS[kind].format(name=disease.name, drug=disease.drug)
            meta_info = "mechanism, never asked" if never_asked else kind
            yield _question(disease, kind, stem, reason, meta_info, letter, draw)


def _question(
    disease: Disease, kind: str, stem: str, reason: str, meta_info: str, letter: str, draw: random.Random
) -> dict[str, object]:
    answer = _value(disease, kind)
    wrong = iter(draw.sample(_wrong_answers(disease, kind), len(LETTERS) - 1))
    options = {each: answer if each == letter else next(wrong) for each in LETTERS}
    return {
        "question": stem,
        "answer": answer,
        "options": options,
        "answer_idx": letter,
        "meta_info": meta_info,
        "explanation": reason,
    }


def _treatments(disease: Disease, draw: random.Random) -> Iterator[str]:
    """Endless questions for the mechanism of a disease's drug by name."""
    while True:
        yield TREATMENT.format(person=draw.choice(("man", "woman")), drug=disease.drug, days=draw.randint(2, 60))


def _wrong_answers(disease: Disease, kind: str) -> list[str]:
    """Every value of the table that is certainly wrong here, sorted so that a seed means the same on each machine.

    No other disease has the three findings of a question (the table promises it), so any other diagnosis is wrong.
    """
    right = {_value(disease, kind), *disease.also_right}
    return sorted({_value(other, kind) for other in DISEASES} - right)


def _value(disease: Disease, kind: str) -> str:
    return disease.name if kind == "diagnosis" else getattr(disease, kind)


def _vignette(combination: Combination, draw: random.Random) -> str:
    disease = combination.disease
    sex = disease.sex or draw.choice(("man", "woman"))
    person = {"man": "boy", "woman": "girl"}[sex] if draw.randint(*disease.ages) < 18 else sex
    return VIGNETTE.format(person=person, findings=_told(combination.findings, draw))


def _write(path: Path, records: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        with path.open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                yield record["text"] if "text" in record else _exam_text(question_from_record(record))


def _exam_text(question: Question, answer_format: str = "letter") -> str:
    return format_prompt(question, answer_format) + format_answer(question, answer_format)
