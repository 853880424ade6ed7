"""A multiple-choice question, and how to read it from the layouts that it is published in."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import InputError, first_line
from ..records import ask_twice
from .fields import LETTERS as LETTERS
from .fields import FieldError, Row, four_options, optional_text, required_text, right_answer
from .question_files import question_rows

COLUMNS = (
    "'question', four 'options' or 'choices' (by letter, as a list, or as key and value), and 'answer_idx' or "
    "'answer'; or 'sent1', 'ending0'..'3', 'label'; or 'question', 'opa'..'opd', 'cop'"
)


@dataclass(frozen=True)
class Question:
    """One question with its options; `answer` is the index of the right one.

    MedQA's have four options, and no other is read from a file; the quizzes that the demo writes have two to four.
    `meta_info` is what a data set says of a question beside it: the exam's step, or a subject. `context` is a text
    that the question is about (PubMedQA's abstract), `explanation` says why the answer is right, and `passages` are
    those of a book that an open-book question comes with.
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
        """The same question with its options in another order, so that no letter is a better guess than another."""
        return self.reordered(tuple(rng.sample(range(len(self.options)), len(self.options))))


def question_from_row(row: Row) -> Question:
    """A `Question` from a row of four options.

    In `GBaker/MedQA-USMLE-4-options` these are `question`, `options` by letter, `answer_idx` and `answer`; in its twin
    `-hf`, which lm-evaluation-harness uses, `sent1`, `ending0..3`, `label`; in MedMCQA `question`, `opa..opd`, `cop`
    (-1 where it has no answers); in MMLU `question`, `choices`, `answer`.

    Raises:
        FieldError: a field is missing, of another type, or says what cannot be.
    """
    text, options = required_text(row, "question", "sent1"), four_options(row)
    return Question(
        text,
        tuple(options),
        right_answer(row, options),
        optional_text(row, "meta_info", "subject_name", "subject"),
        explanation=optional_text(row, "explanation", "exp").strip(),
    )


def read_questions(
    key: str,
    path: str,
    config: str | None = None,
    split: str = "train",
    read_row: Callable[[Row], Question] = question_from_row,
    columns: str = COLUMNS,
    name: str | None = "medqa",
) -> list[Question]:
    """Read all questions of a Hub data set or of local files, as `question_rows` understands them.

    Args:
        read_row: makes a question of a row; FieldError, KeyError, TypeError or ValueError if it cannot.
        columns: what `read_row` needs, for the message.
        name: of the set in a file that holds several.

    Raises:
        InputError: names the file, the row and the field that cannot be read.
    """

    def read() -> list[Question]:
        questions = []
        for place, row in question_rows(key, path, config, split, name):
            try:
                questions.append(read_row(row))
            except (KeyError, TypeError, ValueError) as error:
                wrong = str(error) if isinstance(error, FieldError) else f"{type(error).__name__}: {error}"
                raise InputError(f"{key}: {place} is not a question: {wrong}; expected {columns}") from error
        return questions

    try:
        questions = ask_twice(read)
    except (OSError, ValueError, TypeError) as error:  # of the Hub's rows
        raise InputError(f"{key}: cannot read '{path}': {first_line(error)}") from error
    if not questions:
        raise InputError(f"{key}: '{path}' holds no questions")
    return questions


def repeated_rows(questions: list[Question]) -> list[tuple[int, int]]:
    """(row, earlier row) of each question whose text was asked before, whatever its options then."""
    first: dict[tuple[str, str], int] = {}
    repeated = []
    for row, question in enumerate(questions):
        identity = question.digest, question.context
        if identity in first:
            repeated.append((row, first[identity]))
        first.setdefault(identity, row)
    return repeated
