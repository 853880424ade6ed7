"""What each source trains on and what is held out of it, decided before a run starts and the same on every rank."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ..errors import InputError
from ..medqa.passages import Library
from ..medqa.questions import Question, read_questions
from ..medqa.splits import select_split
from .arguments import DataArguments
from .documents import FREE_FAULTS
from .files import find_files, split_files
from .guard import Guard
from .packing import pack_in_order
from .readers import Fault
from .remote import SourceFailed
from .schedule import Schedule
from .source_rows import ExamRows, OpenBook, TextRows
from .sources import Source, integer_weights
from .states import Row
from .tokenizer import DocumentTokenizer, load_document_tokenizer


@dataclass
class OpenSource:
    """A source that has been found and read from: what it trains on, and its held-out documents."""

    source: Source
    rows: TextRows | ExamRows
    held_out: list[str]
    dev: list[Question] = field(default_factory=list)


def open_sources(sources: list[Source], arguments: DataArguments, seed: int) -> list[OpenSource]:
    """Find the files of every source and read its held-out documents: nothing goes wrong later that can go wrong here.

    Raises:
        InputError: a source cannot be found or read, or nothing of it is left for training.
    """
    try:
        return [
            open_exam(source, arguments, seed) if source.format == "medqa" else open_text(source, arguments, seed)
            for source in sources
        ]
    except SourceFailed as error:
        raise InputError(str(error)) from error


def open_exam(source: Source, arguments: DataArguments, seed: int) -> OpenSource:
    """A medqa source: its dev questions are held out."""
    questions, dev = split_questions(source, arguments.grpo_holdout)
    if not questions:
        raise InputError(f"{source.key}: no question of '{source.paths[0]}' is left for training")
    formats = source.answer_formats or {}
    check_explanations(source.key, formats, questions, dev)
    open_book = None
    if source.passages:
        library = open_library(source, source.passages, arguments)
        number, share = source.num_passages or 0, source.passages_share or 0.0
        questions, dev = library.retrieve(questions, number), library.retrieve(dev, number)
        tokenizer = load_document_tokenizer(arguments.tokenizer_name_or_path)
        room = DocumentTokenizer(tokenizer), arguments.max_seq_length
        open_book = OpenBook(share, len(library), library.left_out, *room)
    rows = ExamRows(source.key, questions, seed, formats, open_book)
    return OpenSource(source, rows, ExamRows(source.key, dev, 0, formats, open_book).texts(), dev)


def describe_exams(opened: list[OpenSource]) -> dict[str, str]:
    """By name of each medqa source, its answer formats and books, and what was left out."""
    return {one.source.name: one.rows.describe() for one in opened if isinstance(one.rows, ExamRows)}


def check_explanations(key: str, formats: dict[str, float], questions: list[Question], dev: list[Question]) -> None:
    """Raise `InputError` if `reasoned` is asked for, and no question to train on, or to hold out, can be."""
    if "reasoned" not in formats:
        return
    for kind, asked, required in (("train", questions, True), ("dev", dev, len(formats) == 1)):
        if required and not any(question.explanation for question in asked):
            raise InputError(
                f"{key}.answer_formats: reasoned needs explanations, and none of the {len(asked):,} {kind} questions "
                "has one; take another format, or a data set with explanations (MedMCQA's column exp)"
            )


def open_library(source: Source, folder: str, arguments: DataArguments) -> Library:
    """The books of a medqa source, without passages that cover one of its questions or one of `decontaminate`."""
    guarded = read_questions(source.key, source.paths[0], source.config)  # also those that are kept for GRPO
    if source.validation_path:
        guarded += read_questions(f"{source.key}.validation_path", source.validation_path)
    return Library.read(f"{source.key}.passages", folder, guarded + decontaminated(arguments))


def open_text(source: Source, arguments: DataArguments, seed: int) -> OpenSource:
    """A text source: documents of its `validation_path`, or else its own first ones, are held out."""
    rows = text_rows(source.key, source, source.paths, arguments, seed)
    if source.validation_path:
        first_documents(rows, 1)  # the source itself can be read too
        held_out = text_rows(f"{source.key}.validation_path", source, [source.validation_path], arguments, seed)
        if shared := {piece.path for piece in rows.pieces} & {piece.path for piece in held_out.pieces}:
            raise InputError(f"{source.key}.validation_path: '{min(shared)}' is among the files to train on")
        return OpenSource(source, rows, [text for *_, text in first_documents(held_out, source.validation_documents)])
    documents = first_documents(rows, source.validation_documents)
    if len(documents) < source.validation_documents:
        raise InputError(
            f"{source.key}: '{source.paths[0]}' has no more than {len(documents)} documents, and validation_documents "
            f"holds out {source.validation_documents}; hold out fewer, or give it a validation_path"
        )
    rows.held_out = {piece: number + 1 for piece, number, _ in documents}  # of each piece the last one counts
    return OpenSource(source, rows, [text for *_, text in documents])


def text_rows(key: str, source: Source, paths: list[str], arguments: DataArguments, seed: int) -> TextRows:
    """The rows of some paths of a text source."""
    files = find_files(key, paths, None if paths != source.paths else source.config)
    pieces = split_files(key, files, arguments.streaming_timeout)
    return TextRows(key, pieces, source.column, arguments.streaming_timeout, seed)


def first_documents(rows: TextRows, count: int) -> list[tuple[int, int, str]]:
    """The first `count` documents of a source, as they lie in its files, with their piece and row."""
    documents: list[tuple[int, int, str]] = []
    faults, last = 0, ""
    for piece, number, value in rows.read_in_order():
        if not isinstance(value, Fault):
            documents.append((piece, number, value))
            if len(documents) == count:
                break
            continue
        faults, last = faults + 1, f"{rows.locate(piece, number)}: {value}"
        if faults > FREE_FAULTS + len(documents):
            raise InputError(f"{rows.key}: most of its first rows cannot be used; {last}")
    if not documents:
        raise InputError(f"{rows.key}: no text in {rows.name}" + (f"; {last}" if faults else ""))
    return documents


def evaluation_guard(opened: list[OpenSource], arguments: DataArguments) -> Guard | None:
    """The guard against documents that hold a question of the evaluation sets; None where there is no question."""
    questions = [question for source in opened for question in source.dev] + decontaminated(arguments)
    return Guard(questions) if questions else None


def decontaminated(arguments: DataArguments) -> list[Question]:
    """The questions of the recipe's `decontaminate`."""
    paths = arguments.decontaminate or []
    return [question for path in paths for question in read_questions("decontaminate", path, split="test")]


def split_questions(source: Source, grpo_holdout: float) -> tuple[list[Question], list[Question]]:
    """The questions of a medqa source to train on and its dev questions; no copy of the latter is in the former."""
    questions = read_questions(source.key, source.paths[0], source.config)
    train = select_split(questions, "train", grpo_holdout=grpo_holdout)
    if source.validation_path:
        dev = read_questions(f"{source.key}.validation_path", source.validation_path)
    else:
        dev = select_split(questions, "dev")
    if not dev:
        raise InputError(f"{source.key}: '{source.paths[0]}' has no dev questions; give it a validation_path")
    held_out = {question.digest for question in dev}
    return [question for question in train if question.digest not in held_out], dev


def validation_mixture(
    opened: list[OpenSource], tokenize: DocumentTokenizer, row_length: int, max_rows: int
) -> list[Row[Any]]:
    """Up to `max_rows` held-out rows in the proportions of the mixture, always the same; no document comes twice.

    Each has `input_ids`, int32 of shape (row_length,), and the name of its `source`.
    """
    packed = {one.source.name: pack_in_order(iter(one.held_out), tokenize, row_length) for one in opened}
    rows = list(islice(mixed_rows(packed, Schedule(integer_weights([one.source for one in opened]))), max_rows))
    if not rows:
        raise InputError(f"sources: the held-out documents do not fill one row of {row_length} tokens for each source")
    return rows


def validation_source_rows(
    sources: list[Source], tokenize: DocumentTokenizer, arguments: DataArguments
) -> list[Row[Any]]:
    """Rows of texts outside the mixture, up to `validation_rows` of each source, as `validation_mixture` gives them.

    Raises:
        InputError: a source cannot be read, or does not fill a row.
    """
    rows: list[Row[Any]] = []
    for source in sources:
        try:
            documents = first_documents(
                text_rows(source.key, source, source.paths, arguments, 0), source.validation_documents
            )
        except SourceFailed as error:
            raise InputError(str(error)) from error
        packed = pack_in_order(iter(text for *_, text in documents), tokenize, arguments.max_seq_length)
        of_source: list[Row[Any]] = [
            {"input_ids": row, "source": source.name} for row in islice(packed, arguments.validation_rows)
        ]
        if not of_source:
            raise InputError(f"{source.key}: {len(documents)} documents do not fill a row")
        rows += of_source
    return rows


def mixed_rows(packed: dict[str, Iterator[np.ndarray]], schedule: Schedule) -> Iterator[Row[Any]]:
    """Rows in the order of a schedule, up to the end of the first source that ends."""
    while (row := next(packed[name := schedule.next_source()], None)) is not None:
        schedule.draw(name)
        yield {"input_ids": row, "source": name}
