"""The rows of a whole source, shard by shard, in an order of its own at every pass: text files or MedQA questions."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from ..medqa.formats import describe_formats, draw_format, format_answer, format_prompt, shuffled_for
from ..medqa.passages import cut_passages, retrieval_metrics
from ..medqa.questions import Question
from .files import Shard, shard_size
from .readers import BROKEN, Fault, read_shard
from .tokenizer import DocumentTokenizer

SHUFFLED_ROWS = 512
HELD_OUT = Fault("held out")


class Rows(Protocol):
    """What `Documents` reads: a source in shards, each in an order of its own at every pass."""

    key: str
    name: str
    num_shards: int
    listing: str  # what rows are counted in: a position means nothing where this differs

    def read(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """The rows of a shard in the order of pass `epoch`, from the `start`-th on, with their numbers in the file."""

    def locate(self, shard: int, number: int) -> str:
        """Where a row is, for a message."""


class TextRows:
    """A source's files. Row groups of a parquet file are shuffled, and rows in blocks of 512, anew at every pass.

    Args:
        held_out: by shard, how many of its first rows are kept for validation.
        skip_broken: a file that cannot be opened at all is one unusable row; otherwise it fails the source.
    """

    def __init__(
        self,
        key: str,
        shards: list[Shard],
        column: str = "text",
        timeout: float = 300.0,
        seed: int = 0,
        held_out: dict[int, int] | None = None,
        skip_broken: bool = False,
    ) -> None:
        self.key, self.shards, self.column, self.timeout, self.seed = key, shards, column, timeout, seed
        names = list(dict.fromkeys(shard.path.rsplit("/", 1)[-1] for shard in shards))
        self.name = names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
        self.held_out, self.skip_broken = held_out or {}, skip_broken
        self.num_shards = len(shards)
        # Without folders, and so without the Hub's commit: a moved copy is the same source.
        self.listing = " ".join(f"{shard.path.rsplit('/', 1)[-1]}:{shard.begin}-{shard.end}" for shard in shards)

    def read(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """See `Rows`."""
        held_out = self.held_out.get(shard, 0)
        groups = random.Random(f"groups {self.seed} {epoch} {shard}")
        skip = start % SHUFFLED_ROWS
        rows = self._read_shard(shard, groups, start - skip)
        block_number = start // SHUFFLED_ROWS
        while block := list(islice(rows, SHUFFLED_ROWS)):
            random.Random(f"rows {self.seed} {epoch} {shard} {block_number}").shuffle(block)
            for number, value in block[skip:]:
                yield number, HELD_OUT if number < held_out else value
            skip, block_number = 0, block_number + 1

    def read_in_order(self) -> Iterator[tuple[int, int, str | Fault]]:
        """(shard, row, value) as they lie in the files."""
        for shard in range(self.num_shards):
            for number, value in self._read_shard(shard):
                yield shard, number, value

    def _read_shard(
        self, shard: int, groups: random.Random | None = None, start: int = 0
    ) -> Iterator[tuple[int, str | Fault]]:
        unit = self.shards[shard]
        for number, value in read_shard(
            self.key, unit, self.column, self.timeout, groups, start, skip_broken=self.skip_broken
        ):
            if isinstance(value, Fault) and value.reason == BROKEN and number > 0:
                value = replace(value, share=self.share(shard))
            yield number, value

    def share(self, shard: int) -> float:
        """The share of the source that a shard is: by bytes if all files are local, or else one of many."""
        sizes = [shard_size(one) for one in self.shards]
        known = [size for size in sizes if size is not None]
        return known[shard] / sum(known) if len(known) == len(sizes) else 1 / self.num_shards

    def locate(self, shard: int, number: int) -> str:
        """See `Rows`."""
        return self.shards[shard].locate(number)


@dataclass(frozen=True)
class OpenBook:
    """Passages before a share of the exam texts.

    Attributes:
        share: of the texts that have passages.
        kept, left_out: passages of the books, and those that would have given a question away.
        max_tokens: of a text with its end-of-text token; passages are cut to it.
    """

    share: float
    kept: int
    left_out: int
    tokenize: DocumentTokenizer
    max_tokens: int

    def prepare(self, question: Question, answer_format: str, rng: random.Random) -> Question:
        """The question without its passages, or with as much of them as its text has room for."""
        if rng.random() >= self.share:
            return replace(question, passages=())
        return cut_passages(question, lambda one: self.fits(exam_text(one, answer_format)))

    def fits(self, text: str) -> bool:
        """Whether a text is short enough."""
        return len(self.tokenize([text])[0]) <= self.max_tokens

    def describe(self, questions: list[Question]) -> str:
        """The books, and how often they hold the options of the questions, which come with their passages."""
        found = retrieval_metrics(questions)
        return (
            f"{self.share:.0%} with passages, of {self.kept:,} ({self.left_out:,} that cover a question left out); "
            f"in those of {found.right_found:.1%} of the questions is the right option's text, "
            f"of the wrong ones {found.wrong_found:.1%}"
        ).replace("%", " %")


def exam_text(question: Question, answer_format: str) -> str:
    """The prompt with its answer."""
    return format_prompt(question, answer_format) + format_answer(question, answer_format)


class ExamRows:
    """Questions as the exam prompt with its answer, in another order and with other letters at every pass.

    Args:
        answer_formats: the formats of the answers with their shares, drawn for each question at every pass; letters by
            default. If all are `reasoned`, questions without an explanation are left out, and `left_out` counts them.
        open_book: which texts have the questions' passages, drawn for each question at every pass.
    """

    def __init__(
        self,
        key: str,
        questions: list[Question],
        seed: int = 0,
        answer_formats: dict[str, float] | None = None,
        open_book: OpenBook | None = None,
    ) -> None:
        self.key, self.seed, self.open_book = key, seed, open_book
        self.answer_formats = answer_formats or {"letter": 1.0}
        only_reasoned = list(self.answer_formats) == ["reasoned"]
        self.questions = [question for question in questions if question.explanation or not only_reasoned]
        self.left_out = len(questions) - len(self.questions)
        self.name = "questions"
        self.num_shards = 1
        contents = [text for question in self.questions for text in (question.digest, *question.passages)]
        self.listing = hashlib.sha256("".join(contents).encode()).hexdigest()

    def read(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """See `Rows`."""
        yield from self._texts(epoch, start)

    def describe(self) -> str:
        """Describe the questions for the start-up block: number, formats, explanations, passages."""
        described = f"{len(self.questions):,} questions, {describe_formats(self.answer_formats)}"
        if "reasoned" in self.answer_formats:
            explained = sum(bool(question.explanation) for question in self.questions)
            described += f"; {explained:,} have an explanation"
        if self.left_out:
            described += f"; {self.left_out:,} without one are left out"
        return described + (f"; {self.open_book.describe(self.questions)}" if self.open_book else "")

    def texts(self) -> list[str]:
        """All questions as text, in the order of the first pass."""
        return [text for _, text in self._texts(0, 0)]

    def _texts(self, epoch: int, start: int) -> Iterator[tuple[int, str]]:
        count = len(self.questions)
        for i in random.Random(f"order {self.seed} {epoch}").sample(range(count), count)[start:]:
            yield i, self._text(self.questions[i], f"{self.seed} {epoch} {i}")

    def _text(self, question: Question, draw: str) -> str:
        answer_format = draw_format(self.answer_formats, question, random.Random(f"format {draw}"))
        question = shuffled_for(question, answer_format, random.Random(f"options {draw}"))
        if self.open_book:
            question = self.open_book.prepare(question, answer_format, random.Random(f"passages {draw}"))
        return exam_text(question, answer_format)

    def locate(self, shard: int, number: int) -> str:
        """See `Rows`."""
        return f"question {number}"
