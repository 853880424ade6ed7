"""Multiple-choice questions: what one is, how to read them, which split each belongs to, and flaws of the data.

Splits are decided here and nowhere else, by a hash of the question's text. A train file falls into three parts:

    dev       10 %, never in pretraining, never in GRPO: what models are selected on
    holdout   `grpo_holdout` of the rest (0 by default): in GRPO, never in pretraining
    train     what remains: in pretraining and in GRPO

A hash depends neither on the order of the records nor on how many of them a copy of MedQA holds, so a question keeps
its split for good. The test split is opened by eval_medqa.py alone.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.entities import html5

from ..errors import InputError, first_line
from ..files import ask_twice
from . import question_files
from .question_files import LETTERS as LETTERS
from .question_files import FieldError, Fields

COLUMNS = (
    "'question', four 'options' or 'choices' (by letter, as a list, or as key and value), and 'answer_idx' or "
    "'answer'; or 'sent1', 'ending0'..'3', 'label'; or 'question', 'opa'..'opd', 'cop'"
)
DEV_SHARE = 0.1
ENTITY = re.compile(r"&(#\d+|#[xX][0-9a-fA-F]+|\w+);")


@dataclass(frozen=True)
class Question:
    """One question with its options; `answer` is the index of the right one.

    MedQA's have four options, and no other number is read from a file; the quizzes that the demo writes have two to
    four. `meta_info` is the exam's step or a subject, `context` a text that the question is about (PubMedQA's
    abstract), `explanation` says why the answer is right, and `passages` are those of an open-book question.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    meta_info: str = ""
    context: str = ""
    explanation: str = ""
    passages: tuple[str, ...] = ()

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.answer]

    @property
    def digest(self) -> str:
        """SHA-256 of the question's text without outer blanks: its identity, whatever the order of its options."""
        return hashlib.sha256(self.question.strip().encode()).hexdigest()

    def reordered(self, order: tuple[int, ...]) -> "Question":
        """The same question with option `order[i]` in place i."""
        return replace(self, options=tuple(self.options[i] for i in order), answer=order.index(self.answer))

    def shuffled(self, rng: random.Random) -> "Question":
        """The same question with its options in random order, so that no letter is a better guess than another."""
        return self.reordered(tuple(rng.sample(range(len(self.options)), len(self.options))))


def question_from_record(record: Fields) -> Question:
    """A `Question` from a record with four options.

    In `GBaker/MedQA-USMLE-4-options` these are `question`, `options` by letter, `answer_idx` and `answer`; in its twin
    `-hf`, which lm-evaluation-harness uses, `sent1`, `ending0..3`, `label`; in MedMCQA `question`, `opa..opd`, `cop`
    (-1 if it has no answers); in MMLU `question`, `choices`, `answer`. FieldError names a field that cannot be read.
    """
    text, options = question_files.required_text(record, "question", "sent1"), question_files.four_options(record)
    return Question(
        text,
        tuple(options),
        question_files.right_answer(record, options),
        question_files.optional_text(record, "meta_info", "subject_name", "subject"),
        explanation=question_files.optional_text(record, "explanation", "exp").strip(),
    )


def read_questions(
    key: str,
    path: str,
    config: str | None = None,
    split: str = "train",
    read_record: Callable[[Fields], Question] = question_from_record,
    columns: str = COLUMNS,
    name: str | None = "medqa",
) -> list[Question]:
    """Read all questions of a Hub data set or of local files (`question_records`).

    Args:
        read_record: makes a question of a record; raises FieldError, KeyError, TypeError or ValueError if it cannot.
        columns: the fields that `read_record` needs, as an error names them.
        name: of the set in a file that holds several.

    Raises:
        InputError: names the file, the record and the field that cannot be read.
    """

    def read() -> list[Question]:
        questions = []
        for place, record in question_files.question_records(key, path, config, split, name):
            try:
                questions.append(read_record(record))
            except (KeyError, TypeError, ValueError) as error:
                wrong = str(error) if isinstance(error, FieldError) else f"{type(error).__name__}: {error}"
                raise InputError(f"{key}: {place} is not a question: {wrong}; expected {columns}") from error
        return questions

    try:
        questions = ask_twice(read)
    except (OSError, ValueError, TypeError) as error:  # of the Hub's records
        raise InputError(f"{key}: cannot read '{path}': {first_line(error)}") from error
    if not questions:
        raise InputError(f"{key}: '{path}' holds no questions")
    return questions


def split_of(question: Question, grpo_holdout: float = 0.0) -> str:
    """`dev`, `holdout` or `train` for a question of a train file; duplicates of a question share a split."""
    position = int(question.digest[:13], 16) / 16**13
    if position < DEV_SHARE:
        return "dev"
    return "holdout" if position < DEV_SHARE + (1 - DEV_SHARE) * grpo_holdout else "train"


def select_split(questions: list[Question], *splits: str, grpo_holdout: float = 0.0) -> list[Question]:
    """The questions of a train file that fall into one of `splits`, in their order."""
    if not 0 <= grpo_holdout < 1:
        raise InputError(f"grpo_holdout: expected a share from 0 up to 1, found {grpo_holdout}")
    return [question for question in questions if split_of(question, grpo_holdout) in splits]


def option_text(option: str) -> str:
    """An option on one line, as the formats `text` and `reasoned` write it."""
    return " ".join(option.split())


@dataclass
class Flaws:
    """Row numbers of questions whose flaws make an accuracy mean less: counted and reported, never mended.

    Two options with the same text (`right_option_twice`: one of them is right), an empty option, or an HTML entity
    such as `&lt;` instead of the character.
    """

    same_options: list[int] = field(default_factory=list)
    right_option_twice: list[int] = field(default_factory=list)
    empty_options: list[int] = field(default_factory=list)
    html_entities: list[int] = field(default_factory=list)

    def describe(self) -> list[str]:
        """A sentence for each flaw that occurs."""
        titles = {
            "two options with the same text": self.same_options,
            "an empty option": self.empty_options,
            "HTML entities": self.html_entities,
        }
        sentences = []
        for title, rows in titles.items():
            if rows:
                named = ", ".join(map(str, rows[:5])) + " ..." * (len(rows) > 5)
                sentences.append(f"Questions with {title}: {len(rows)} (row{'s' * (len(rows) > 1)} {named}).")
        if self.same_options:
            twice = len(self.right_option_twice)
            sentences[0] += f" In {twice} of them the right option is one of the two, so another answer is right too."
        return sentences


def find_flaws(questions: list[Question]) -> Flaws:
    """Check all questions."""
    flaws = Flaws()
    for row, question in enumerate(questions):
        texts = [unicodedata.normalize("NFC", option_text(option)) for option in question.options]
        if len({*texts}) < len(texts):
            flaws.same_options.append(row)
        if texts.count(texts[question.answer]) > 1:
            flaws.right_option_twice.append(row)
        if "" in texts:
            flaws.empty_options.append(row)
        entities = ENTITY.findall(" ".join((question.question, question.context, *question.options)))
        if any(name.startswith("#") or f"{name};" in html5 for name in entities):
            flaws.html_entities.append(row)
    return flaws


def repeated_rows(questions: list[Question]) -> list[tuple[int, int]]:
    """(row, earlier row) of each question whose text occurred before, whatever its options there."""
    first: dict[tuple[str, str], int] = {}
    repeated = []
    for row, question in enumerate(questions):
        earlier = first.setdefault((question.digest, question.context), row)
        if earlier != row:
            repeated.append((row, earlier))
    return repeated
