"""The rows of a whole source, piece by piece, in an order of its own at every pass: text files or MedQA questions."""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from ..medqa.formats import describe_formats, draw_format, format_answer, format_prompt, shuffled_for
from ..medqa.questions import Question
from .files import Piece
from .readers import Fault, read_piece

SHUFFLED_ROWS = 512
HELD_OUT = Fault("held out")


class Rows(Protocol):
    """What `Documents` reads: a source in pieces, each in an order of its own at every pass."""

    key: str
    name: str
    num_pieces: int
    listing: str  # what rows are counted in: a position means nothing where this differs

    def read(self, piece: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """The rows of a piece in the order of pass `epoch`, from the `start`-th on, with their numbers in the file."""

    def locate(self, piece: int, number: int) -> str:
        """Where a row is, for a message."""


class TextRows:
    """A source's files. Row groups of a parquet file are shuffled, and rows in blocks of 512, anew at every pass.

    Args:
        held_out: by piece, how many of its first rows are kept for validation.
    """

    def __init__(
        self,
        key: str,
        pieces: list[Piece],
        column: str = "text",
        timeout: float = 300.0,
        seed: int = 0,
        held_out: dict[int, int] | None = None,
    ) -> None:
        self.key, self.pieces, self.column, self.timeout, self.seed = key, pieces, column, timeout, seed
        names = list(dict.fromkeys(piece.path.rsplit("/", 1)[-1] for piece in pieces))
        self.name = names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
        self.held_out = held_out or {}
        self.num_pieces = len(pieces)
        # Without folders, and so without the Hub's commit: a moved copy is the same source.
        self.listing = " ".join(f"{piece.path.rsplit('/', 1)[-1]}:{piece.begin}-{piece.end}" for piece in pieces)

    def read(self, piece: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """See `Rows`."""
        held_out = self.held_out.get(piece, 0)
        groups = random.Random(f"groups {self.seed} {epoch} {piece}")
        skip = start % SHUFFLED_ROWS
        rows = read_piece(self.key, self.pieces[piece], self.column, self.timeout, groups, start - skip)
        block_number = start // SHUFFLED_ROWS
        while block := list(islice(rows, SHUFFLED_ROWS)):
            random.Random(f"rows {self.seed} {epoch} {piece} {block_number}").shuffle(block)
            for number, value in block[skip:]:
                yield number, HELD_OUT if number < held_out else value
            skip, block_number = 0, block_number + 1

    def read_in_order(self) -> Iterator[tuple[int, int, str | Fault]]:
        """(piece, row, value) as they lie in the files."""
        for piece, unit in enumerate(self.pieces):
            for number, value in read_piece(self.key, unit, self.column, self.timeout):
                yield piece, number, value

    def locate(self, piece: int, number: int) -> str:
        """See `Rows`."""
        return self.pieces[piece].locate(number)


class ExamRows:
    """Questions as the exam prompt with its answer, in another order and with other letters at every pass.

    Args:
        answer_formats: the formats of the answers with their shares, drawn for each question at every pass; letters by
            default. If all are `reasoned`, questions without an explanation are left out, and `left_out` counts them.
    """

    def __init__(
        self, key: str, questions: list[Question], seed: int = 0, answer_formats: dict[str, float] | None = None
    ) -> None:
        self.key, self.seed = key, seed
        self.answer_formats = answer_formats or {"letter": 1.0}
        only_reasoned = list(self.answer_formats) == ["reasoned"]
        self.questions = [question for question in questions if question.explanation or not only_reasoned]
        self.left_out = len(questions) - len(self.questions)
        self.name = "questions"
        self.num_pieces = 1
        self.listing = hashlib.sha256("".join(question.digest for question in self.questions).encode()).hexdigest()

    def read(self, piece: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """See `Rows`."""
        yield from self._texts(epoch, start)

    def describe(self) -> str:
        """What is read, for the start-up block."""
        described = f"{len(self.questions):,} questions, {describe_formats(self.answer_formats)}"
        if "reasoned" in self.answer_formats:
            explained = sum(bool(question.explanation) for question in self.questions)
            described += f"; {explained:,} have an explanation"
        return described + (f"; {self.left_out:,} without one are left out" if self.left_out else "")

    def texts(self) -> list[str]:
        """All questions as text, in the order of the first pass."""
        return [text for _, text in self._texts(0, 0)]

    def _texts(self, epoch: int, start: int) -> Iterator[tuple[int, str]]:
        count = len(self.questions)
        for i in random.Random(f"order {self.seed} {epoch}").sample(range(count), count)[start:]:
            question = self.questions[i]
            drawn = draw_format(self.answer_formats, question, random.Random(f"format {self.seed} {epoch} {i}"))
            question = shuffled_for(question, drawn, random.Random(f"options {self.seed} {epoch} {i}"))
            yield i, format_prompt(question, drawn) + format_answer(question, drawn)

    def locate(self, piece: int, number: int) -> str:
        """See `Rows`."""
        return f"question {number}"
