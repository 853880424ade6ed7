"""The records of a source, shard by shard and shuffled in every epoch: text or MedQA questions."""

import hashlib
import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import is_document, lower_name
from ..medqa.formats import describe_formats, draw_format, format_answer, format_prompt, shuffled_for
from ..medqa.passages import cut_passages, retrieval_metrics
from ..medqa.questions import Question
from .decoders import BROKEN, Fault, read_shard, texts_of
from .remote import open_file
from .shards import Shard
from .tokenizer import DocumentTokenizer

SHUFFLED_RECORDS = 512
SAMPLE_BYTES, SAMPLE_SHARDS = 1 << 20, 16
VALIDATION = Fault("validation document")


class Records(Protocol):
    """What `Documents` reads: a source in shards, each shuffled in every epoch."""

    key: str
    name: str
    num_shards: int
    listing: str  # identifies the records: a position is valid only for the same listing

    def read(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """Yield the records of a shard in the order of an epoch, from the `start`-th on, with their file's numbers."""

    def locate(self, shard: int, number: int) -> str:
        """Describe the location of a record for error messages."""


@dataclass(eq=False)
class TextRecords:
    """The files of a source. Every epoch shuffles the row groups of a parquet file, and records in blocks of 512.

    Args:
        validation_records: by shard, the number of first records that are for validation.
        skip_broken: count a file that cannot be opened as one unusable record instead of raising an error.
    """

    key: str
    shards: list[Shard]
    column: str = "text"
    timeout: float = 300.0
    seed: int = 0
    validation_records: dict[int, int] = field(default_factory=dict)
    skip_broken: bool = False

    def __post_init__(self) -> None:
        # Without folders and the Hub's commit: a copy in another place is the same source.
        names = [shard.path.rsplit("/", 1)[-1] for shard in self.shards]
        others = len(set(names)) - 1
        self.name, self.num_shards = names[0] + (f" and {others:,} more" if others else ""), len(names)
        ranges = zip(names, self.shards, strict=True)
        self.listing = " ".join(f"{name}:{shard.begin}-{shard.end}" for name, shard in ranges)

    def read(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, str | Fault]]:
        """See `Records`."""
        for_validation = self.validation_records.get(shard, 0)
        groups = random.Random(f"groups {self.seed} {epoch} {shard}")
        skip = start % SHUFFLED_RECORDS
        records = self._read_shard(shard, groups, start - skip)
        block_number = start // SHUFFLED_RECORDS
        while block := list(islice(records, SHUFFLED_RECORDS)):
            random.Random(f"rows {self.seed} {epoch} {shard} {block_number}").shuffle(block)
            for number, value in block[skip:]:
                yield number, VALIDATION if number < for_validation else value
            skip, block_number = 0, block_number + 1

    def read_in_order(self) -> Iterator[tuple[int, int, str | Fault]]:
        """Yield (shard, record, value) in the order of the files."""
        for shard in range(self.num_shards):
            for number, value in self._read_shard(shard):
                yield shard, number, value

    def _read_shard(
        self, shard: int, groups: random.Random | None = None, start: int = 0
    ) -> Iterator[tuple[int, str | Fault]]:
        unit = self.shards[shard]
        for number, value in read_shard(self.key, unit, self.column, self.timeout, groups, start, self.skip_broken):
            if isinstance(value, Fault) and value.reason == BROKEN and number > 0:
                value = replace(value, share=self._share(shard))
            yield number, value

    def _share(self, shard: int) -> float:
        """The share of a shard in the source: by bytes if all files are local, or else by number."""
        sizes = [one.size for one in self.shards]
        known = [size for size in sizes if size is not None]
        return known[shard] / sum(known) if len(known) == len(sizes) else 1 / self.num_shards

    def locate(self, shard: int, number: int) -> str:
        """See `Records`."""
        return self.shards[shard].locate(number)

    def tokens_per_epoch(self, tokenize: DocumentTokenizer, sample: list[str]) -> float:
        """Estimate the tokens of one epoch from a sample of its documents."""
        return sum(map(len, tokenize(sample))) / len(sample) * self._estimate_documents()

    def _estimate_documents(self) -> float:
        """Estimate the documents of the source from a few of its shards and the size of all.

        The sizes of remote files are unknown: then the first shard that has documents stands for all.
        """
        sizes = [shard.size for shard in self.shards]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes):
            sample = range(0, len(sizes), -(-len(sizes) // SAMPLE_SHARDS))
            counted = sum(self._estimate_shard(self.shards[i]) for i in sample)
            return counted / sum(known[i] for i in sample) * sum(known)
        counts = map(self._estimate_shard, self.shards)
        return next((count for count in counts if count), 1.0) * len(sizes)

    def _estimate_shard(self, shard: Shard) -> float:
        """Estimate the documents of a shard from its footer, or from the density of its first records."""
        if is_document(shard.path):
            return 1
        with open_file(self.key, shard.path, self.timeout) as file:
            if lower_name(shard.path).endswith(".parquet"):
                return filled_rows(file, self.column)
            size = file.seek(0, os.SEEK_END) if shard.end is None else shard.end - shard.begin
            file.seek(shard.begin)
            sample = file.read(min(SAMPLE_BYTES, size))  # the last record is cut off, and so a fault
            cut = replace(shard, begin=0, end=None)
            found = texts_of(io.BufferedReader(io.BytesIO(sample)), cut, self.column)
            return sum(not isinstance(text, Fault) for text in found) * size / max(1, len(sample))


def filled_rows(file: BinaryIO, column: str) -> int:
    """Rows of a parquet file that are not null in a column, according to its footer."""
    try:
        metadata = pq.ParquetFile(file).metadata
    except (pa.ArrowException, OSError):  # counted as a broken file when it is read
        return 0
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    found = [one.statistics for one in columns if one.path_in_schema == column and one.statistics]
    return int(metadata.num_rows) - sum(statistics.null_count or 0 for statistics in found)


@dataclass(frozen=True)
class OpenBook:
    """Puts passages before a share of the exam texts.

    Attributes:
        share: share of the texts with passages.
        kept, left_out: number of passages in the books, and of those left out because they cover a question.
        max_tokens: longest text, with its end-of-text token; passages are cut to fit.
    """

    share: float
    kept: int
    left_out: int
    tokenize: DocumentTokenizer
    max_tokens: int

    def prepare(self, question: Question, answer_format: str, rng: random.Random) -> Question:
        """The question without passages, or with as much of them as fits."""
        if rng.random() >= self.share:
            return replace(question, passages=())
        return cut_passages(
            question, lambda one: len(self.tokenize([exam_text(one, answer_format)])[0]) <= self.max_tokens
        )

    def describe(self, questions: list[Question]) -> str:
        """Describe the books, and how often the passages of the questions contain their options."""
        found = retrieval_metrics(questions)
        return (
            f"{self.share:.0%} with passages, from {self.kept:,} ({self.left_out:,} that cover a question left out); "
            f"they contain {found.right_found:.1%} of the right options and {found.wrong_found:.1%} of the wrong ones"
        ).replace("%", " %")


def exam_text(question: Question, answer_format: str) -> str:
    """The prompt, and its answer."""
    return format_prompt(question, answer_format) + format_answer(question, answer_format)


@dataclass(eq=False)
class ExamRecords:
    """Questions as exam prompts with their answers. Every epoch shuffles the questions and their options.

    Args:
        answer_formats: answer formats and their shares, drawn for each question in every epoch; letters by default. If
            `reasoned` is the only one, questions without an explanation are left out (`left_out`).
        open_book: puts passages before texts, drawn for each question in every epoch.
    """

    key: str
    questions: list[Question]
    seed: int = 0
    answer_formats: dict[str, float] = field(default_factory=lambda: {"letter": 1.0})
    open_book: OpenBook | None = None

    def __post_init__(self) -> None:
        only_reasoned, count = list(self.answer_formats) == ["reasoned"], len(self.questions)
        self.questions = [question for question in self.questions if question.explanation or not only_reasoned]
        self.left_out = count - len(self.questions)
        self.name, self.num_shards = "questions", 1
        contents = [text for question in self.questions for text in (question.digest, *question.passages)]
        self.listing = hashlib.sha256("".join(contents).encode()).hexdigest()

    def read(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, str]]:
        """See `Records`."""
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
        """See `Records`."""
        return f"question {number}"

    def texts(self) -> list[str]:
        """The texts of all questions in the first epoch."""
        return [text for _, text in self.read(0, 0, 0)]

    def tokens_per_epoch(self, tokenize: DocumentTokenizer, sample: list[str]) -> float:
        """Count the tokens of all questions."""
        return float(sum(map(len, tokenize(self.texts()))))

    def describe(self) -> str:
        """Describe the questions for the start-up block."""
        described = f"{len(self.questions):,} questions, {describe_formats(self.answer_formats)}"
        if "reasoned" in self.answer_formats:
            explained = sum(bool(question.explanation) for question in self.questions)
            described += f"; {explained:,} have an explanation"
        if self.left_out:
            described += f"; {self.left_out:,} without one are left out"
        return described + (f"; {self.open_book.describe(self.questions)}" if self.open_book else "")
