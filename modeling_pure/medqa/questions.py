"""Multiple-choice questions: reading them, their splits, and flaws of the data.

A hash of the question's text, computed only here, divides a train file into three parts:

    dev       10 %, never in pretraining, never in GRPO: for model selection
    holdout   `grpo_holdout` of the rest (0 by default): in GRPO, never in pretraining
    train     what remains: in pretraining and in GRPO

The hash does not depend on the order or number of records, so a question has the same split in every copy of MedQA.
Only eval_medqa.py opens the test split.
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
    """One question with its options.

    Attributes:
        options: four if read from a file; the demo's quizzes have two to four.
        answer: index of the right option.
        meta_info: the exam's step, or a subject.
        context: a text that the question is about (PubMedQA's abstract).
        explanation: why the answer is right.
        passages: of an open-book question.
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
        """The question's identity: SHA-256 of its text without surrounding whitespace; options do not matter."""
        return hashlib.sha256(self.question.strip().encode()).hexdigest()

    def reordered(self, order: tuple[int, ...]) -> "Question":
        """The same question with option `order[i]` in place i."""
        return replace(self, options=tuple(self.options[i] for i in order), answer=order.index(self.answer))

    def shuffled(self, rng: random.Random) -> "Question":
        """The same question with its options in random order, so that every letter is an equally good guess."""
        return self.reordered(tuple(rng.sample(range(len(self.options)), len(self.options))))


def question_from_record(record: Fields) -> Question:
    """A `Question` from a record with four options; `FieldError` names a field that cannot be read.

    `GBaker/MedQA-USMLE-4-options` has `question`, `options` by letter, `answer_idx` and `answer`; its variant `-hf`,
    which lm-evaluation-harness uses, `sent1`, `ending0..3` and `label`; MedMCQA `question`, `opa..opd` and `cop` (-1
    without an answer); MMLU `question`, `choices` and `answer`.
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
        read_record: converts a record; raises FieldError, KeyError, TypeError or ValueError if it cannot.
        columns: the fields that `read_record` needs, for error messages.
        name: of the data set in a file that holds several.

    Raises:
        InputError: names the file, record and field that cannot be read.
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
    except (OSError, ValueError, TypeError) as error:  # from records of the Hub
        raise InputError(f"{key}: cannot read '{path}': {first_line(error)}") from error
    if not questions:
        raise InputError(f"{key}: '{path}' holds no questions")
    return questions


def split_of(question: Question, grpo_holdout: float = 0.0) -> str:
    """The split of a question of a train file: `dev`, `holdout` or `train`; the same for duplicates."""
    position = int(question.digest[:13], 16) / 16**13
    if position < DEV_SHARE:
        return "dev"
    return "holdout" if position < DEV_SHARE + (1 - DEV_SHARE) * grpo_holdout else "train"


def select_split(questions: list[Question], *splits: str, grpo_holdout: float = 0.0) -> list[Question]:
    """The questions of a train file that belong to one of `splits`, in their order."""
    if not 0 <= grpo_holdout < 1:
        raise InputError(f"grpo_holdout: expected a share from 0 up to 1, found {grpo_holdout}")
    return [question for question in questions if split_of(question, grpo_holdout) in splits]


def option_text(option: str) -> str:
    """An option on one line, as in the formats `text` and `reasoned`."""
    return " ".join(option.split())


@dataclass
class Flaws:
    """Row numbers of flawed questions, which are reported and never corrected.

    Flaws are two options with the same text (`right_option_twice` if one of them is right), an empty option, and an
    HTML entity such as `&lt;` instead of the character.
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
            sentences[0] += f" In {twice} of them the right option is one of the two, so another answer is also right."
        return sentences


def find_flaws(questions: list[Question]) -> Flaws:
    """Find the flaws of all questions."""
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
    """Pairs (row, earlier row) of questions whose text occurred before, perhaps with other options."""
    first: dict[tuple[str, str], int] = {}
    pairs = [(row, first.setdefault((one.digest, one.context), row)) for row, one in enumerate(questions)]
    return [(row, earlier) for row, earlier in pairs if earlier != row]
