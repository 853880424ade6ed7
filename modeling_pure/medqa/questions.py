"""A MedQA question, and how to read it from either of the two layouts in which MedQA is published."""

import hashlib
import random
from dataclasses import dataclass, replace

from ..errors import InputError, first_line
from ..rows import open_rows

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One question with its options; `answer` is the index of the right one.

    MedQA's have four options, and no other is read from a file; the quizzes that the demo writes have two to four.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    meta_info: str = ""

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.answer]

    @property
    def digest(self) -> str:
        """SHA-256 of the question's text without outer blanks: its identity, whatever the order of its options."""
        return hashlib.sha256(self.question.strip().encode()).hexdigest()

    def shuffled(self, rng: random.Random) -> "Question":
        """The same question with its options in another order, so that no letter is a better guess than another."""
        order = rng.sample(range(len(self.options)), len(self.options))
        return replace(self, options=tuple(self.options[i] for i in order), answer=order.index(self.answer))


def read_questions(key: str, path: str, config: str | None = None, split: str = "train") -> list[Question]:
    """Read all questions of a Hub data set or of local files (`rows.open_rows` says how `path` is understood).

    Two layouts are read: that of `GBaker/MedQA-USMLE-4-options` (`question`, `options` A..D, `answer_idx`) and that of
    `GBaker/MedQA-USMLE-4-options-hf` (`sent1`, `ending0..3`, `label`), which lm-evaluation-harness uses.

    Raises:
        InputError: names the file and the row that cannot be read.
    """
    questions = []
    try:
        for number, row in enumerate(open_rows(key, path, config, split)):
            try:
                questions.append(question_from_row(row))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{key}: row {number} of '{path}' is not a MedQA question ({type(error).__name__}: {error}); "
                    "expected 'question', 'options' with A..D and 'answer_idx', or 'sent1', 'ending0'..'3', 'label'"
                ) from error
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{key}: cannot read '{path}': {first_line(error)}") from error
    if not questions:
        raise InputError(f"{key}: '{path}' holds no questions")
    return questions


def question_from_row(row: dict) -> Question:
    """A `Question` from a row of either layout; KeyError, TypeError or ValueError where the row is neither."""
    if "sent1" in row:
        text, options = row["sent1"], tuple(row[f"ending{i}"] for i in range(4))
        answer = int(row["label"])
    else:
        text, options = row["question"], tuple(row["options"][letter] for letter in LETTERS)
        answer = LETTERS.index(row["answer_idx"])
    if not isinstance(text, str) or not text.strip():
        raise ValueError("empty question")
    if not all(isinstance(option, str) for option in options):
        raise ValueError("an option is not text")
    if not 0 <= answer < 4:
        raise ValueError(f"label {answer} is not 0..3")
    return Question(text, options, answer, row.get("meta_info") or "")
