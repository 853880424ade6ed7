"""A multiple-choice question, and how to read it from MedQA's two published layouts or from MedMCQA's."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, first_line
from ..rows import open_rows

LETTERS = "ABCD"
MEDQA_COLUMNS = (
    "'question', 'options' with A..D and 'answer_idx'; or 'sent1', 'ending0'..'3', 'label'; "
    "or 'question', 'opa'..'opd', 'cop'"
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


def read_questions(
    key: str,
    path: str,
    config: str | None = None,
    split: str = "train",
    read_row: Callable[[dict[str, Any]], Question] | None = None,
    columns: str = MEDQA_COLUMNS,
) -> list[Question]:
    """Read all questions of a Hub data set or of local files (`rows.open_rows` says how `path` is understood).

    Args:
        read_row: makes a question of a row; KeyError, TypeError or ValueError where it cannot. By default MedQA's.
        columns: what `read_row` needs, for the message.

    Raises:
        InputError: names the file and the row that cannot be read.
    """
    read_row = read_row or question_from_row
    questions = []
    try:
        for number, row in enumerate(open_rows(key, path, config, split)):
            try:
                questions.append(read_row(row))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{key}: row {number} of '{path}' is not a question ({type(error).__name__}: {error}); "
                    f"expected {columns}"
                ) from error
    except (OSError, ValueError, TypeError) as error:  # pyarrow's errors are ValueErrors, those of a cast TypeErrors
        raise InputError(f"{key}: cannot read '{path}': {first_line(error)}") from error
    if not questions:
        raise InputError(f"{key}: '{path}' holds no questions")
    return questions


def question_from_row(row: dict[str, Any]) -> Question:
    """A `Question` from a row of either of MedQA's layouts, or of MedMCQA's.

    `GBaker/MedQA-USMLE-4-options` has `question`, `options` A..D, `answer_idx`, and `answer`, which is checked where
    it is there; `GBaker/MedQA-USMLE-4-options-hf`, which lm-evaluation-harness uses, has `sent1`, `ending0..3`,
    `label`. Both may have an `explanation`.

    Raises:
        KeyError, TypeError, ValueError: the row is none of these, has other than four options, or its answer is none
            of them.
    """
    if "opa" in row:
        return medmcqa_question(row)
    if "sent1" in row:
        endings = sorted(name for name in row if name.startswith("ending") and row[name] is not None)
        require_four(endings, [f"ending{i}" for i in range(4)])
        text, options, answer = row["sent1"], [row[name] for name in endings], int(row["label"])
    else:
        letters = sorted(letter for letter, option in row["options"].items() if option is not None)
        require_four(letters, list(LETTERS))
        text, options = row["question"], [row["options"][letter] for letter in LETTERS]
        answer = letter_index(row["answer_idx"])
        if row.get("answer") is not None and row["answer"].strip() != options[answer].strip():
            raise ValueError(f"the answer {row['answer']!r} is not option {row['answer_idx']}")
    return checked_question(text, options, answer, row.get("meta_info"), explanation=row.get("explanation"))


def medmcqa_question(row: dict[str, Any]) -> Question:
    """From `question`, `opa`..`opd`, `cop` (0..3; -1 in its test split, which has no answers) and `exp`."""
    options = [row[f"op{letter}"] for letter in "abcd"]
    return checked_question(row["question"], options, int(row["cop"]), row.get("subject_name"), "", row.get("exp"))


def require_four(found: list[str], expected: list[str]) -> None:
    """Five options make another task; with three, lm-evaluation-harness's prompt cannot be written."""
    if found != expected:
        raise ValueError(f"options {', '.join(found) or 'none'} where {', '.join(expected)} were expected")


def letter_index(letter: str | None) -> int:
    """The index of an answer's letter; `"ABCD".index("")` would be 0."""
    if letter not in tuple(LETTERS):
        raise ValueError(f"the answer {letter!r} is none of {', '.join(LETTERS)}")
    return LETTERS.index(letter)


def checked_question(
    text: str | None,
    options: list[str],
    answer: int,
    meta_info: str | None = None,
    context: str = "",
    explanation: str | None = None,
) -> Question:
    """A question whose parts have been looked at; ValueError where one cannot be."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("empty question")
    if not all(isinstance(option, str) for option in options):
        raise ValueError("an option is not text")
    if not 0 <= answer < len(options):
        raise ValueError(f"answer {answer} is not 0..{len(options) - 1}")
    if not isinstance(explanation, str | None):
        raise ValueError("the explanation is not text")
    return Question(text, tuple(options), answer, meta_info or "", context, (explanation or "").strip())


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
