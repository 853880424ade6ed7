"""What each source trains on and what is held out of it, decided before a run starts and the same on every rank."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..medqa.passages import Library
from ..medqa.question_files import ENDINGS, files_to_read
from ..medqa.questions import Question, read_questions, select_split
from ..records import files_below, looks_local
from ..tokenizer import load_document_tokenizer
from .arguments import DataArguments
from .files import DOCUMENTS, SourceFiles, find_files, identity, lower_name, split_files
from .guard import Guard
from .losses import FREE_FAULTS
from .packing import pack_in_order
from .readers import ONE_DOCUMENT, Fault, cannot_open, why_not_opened
from .remote import SourceFailed
from .schedule import Schedule
from .source_rows import ExamRows, OpenBook, TextRows
from .sources import Source, integer_weights, parse_validation_sources
from .states import TokenSequence
from .tokenizer import DocumentTokenizer

HELD_OUT_SPLITS = ("validation", "test", "train")  # of a folder or data set to hold out, the first that is there


@dataclass
class OpenSource:
    """A source that has been found and read from: what it trains on, and its held-out documents."""

    source: Source
    rows: TextRows | ExamRows
    held_out: list[str]
    dev: list[Question] = field(default_factory=list)
    files: SourceFiles = field(default_factory=SourceFiles)  # none of questions on the Hub


def open_sources(sources: list[Source], arguments: DataArguments, seed: int) -> list[OpenSource]:
    """Find the files of every source and read its held-out documents: nothing goes wrong later that can go wrong here.

    What is held out is decided over the files of all sources together: each is read once, for one source.

    Raises:
        InputError: a source cannot be found or read, nothing of it is left for training, or a file is both to be
            trained on and held out.
    """
    try:
        files = training_files(sources, arguments)
        check_held_out_files(sources, arguments, files)
        opened = [
            open_exam(source, arguments, seed)
            if source.format == "medqa"
            else open_text(source, files[source.name], arguments, seed)
            for source in sources
        ]
    except SourceFailed as error:
        raise InputError(str(error)) from error
    hold_out_in_all_sources(opened)
    return opened


def training_files(sources: list[Source], arguments: DataArguments) -> dict[str, SourceFiles]:
    """The files of each text source. One that two sources read from the same column is the first one's."""
    files: dict[str, SourceFiles] = {}
    known: dict[object, str] = {}
    for source in sources:
        if source.format == "medqa":
            continue
        found = find_files(source.key, source.paths, source.config)
        if source.config and not any(file.startswith("hf://") for file in found.taken):
            found.remark = f"; config {source.config} is not used: only data sets of the Hub have one"
        text = {file: (identity(file), column_of(file, source)) for file in found.taken}
        again = {file: name for file in found.taken if (name := known.get(text[file]))}
        found.taken = [file for file in found.taken if file not in again]
        for name in dict.fromkeys(again.values()):
            found.leave_out(f"in sources.{name} already", [file for file in again if again[file] == name])
        if not found.taken:
            raise InputError(f"{source.key}.path: all its files are in {known_sources(again)} already")
        leave_out_broken(source, found, arguments)
        known |= {text[file]: source.name for file in found.taken}
        files[source.name] = found
    return files


def column_of(file: str, source: Source) -> str | None:
    """The column that a source reads from a file; None if the file is one document."""
    return None if lower_name(file).endswith(DOCUMENTS) else source.column


def known_sources(again: dict[str, str]) -> str:
    """The sources that have some files, by their keys."""
    return ", ".join(f"sources.{name}" for name in dict.fromkeys(again.values()))


def leave_out_broken(source: Source, found: SourceFiles, arguments: DataArguments) -> None:
    """Take local files that cannot be opened out of `found`, if the recipe allows it; servers are not asked yet.

    Raises:
        InputError: it does not, or no file is left.
    """
    broken: dict[str, str] = {}
    for file in found.taken:
        if "://" not in file and (why := why_not_opened(source.key, file, source.column)):
            broken[file] = why
    if not broken:
        return
    file, why = next(iter(broken.items()))
    if not arguments.skip_broken_files or len(broken) == len(found.taken):
        many = f" ({len(broken):,} of {len(found.taken):,} files)" if len(found.taken) > 1 else ""
        raise InputError(cannot_open(source.key, file, why + many))
    found.taken = [file for file in found.taken if file not in broken]
    found.leave_out("cannot be opened", list(broken))


def check_held_out_files(sources: list[Source], arguments: DataArguments, files: dict[str, SourceFiles]) -> None:
    """Raise `InputError` if a file to hold out, of any source or outside the mixture, is one to train on."""
    trained = {identity(file): (name, file) for name, found in files.items() for file in found.taken}
    held_out = [(f"{one.key}.validation_path", one.validation_path, one) for one in sources if one.validation_path]
    outside = parse_validation_sources(arguments.validation_sources, sources)
    paths = [(key, [path], None) for key, path, one in held_out if one.format == "text"]
    for key, of_key, config in [*paths, *((one.key, one.paths, one.config) for one in outside)]:
        for file in find_files(key, of_key, config, HELD_OUT_SPLITS).taken:
            if identity(file) in trained:
                name, path = trained[identity(file)]
                raise InputError(f"{key}: '{file}' is among the files to train on: '{path}' of sources.{name}")


def hold_out_in_all_sources(opened: list[OpenSource]) -> None:
    """Hold out rows of a file in every source that reads it, perhaps from another column."""
    texts = [one.rows for one in opened if isinstance(one.rows, TextRows)]
    rows: dict[tuple[object, int], int] = {}
    for one in texts:
        for shard, count in one.held_out.items():
            place = (identity(one.shards[shard].path), one.shards[shard].begin)
            rows[place] = max(count, rows.get(place, 0))
    for one in texts:
        places = ((identity(shard.path), shard.begin) for shard in one.shards)
        one.held_out = {shard: rows[place] for shard, place in enumerate(places) if place in rows}


def held_out_texts(opened: list[OpenSource]) -> frozenset[str]:
    """The held-out documents of all text sources: no copy of one is trained on, whatever file it lies in."""
    return frozenset(text for one in opened if isinstance(one.rows, TextRows) for text in one.held_out)


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
    held_out = ExamRows(source.key, dev, 0, formats, open_book).texts()
    return OpenSource(source, rows, held_out, dev, exam_files(source))


def exam_files(source: Source) -> SourceFiles:
    """The local files that the questions of a medqa source come from."""
    (path,), found = source.paths, SourceFiles()
    if looks_local(path, ENDINGS):
        found.taken = files_to_read(source.key, path, "train")
        beside = map(str, files_below(path)) if Path(path).is_dir() else []
        found.leave_out("not questions to train on", [file for file in beside if file not in found.taken])
    return found


def describe_exams(opened: list[OpenSource]) -> dict[str, str]:
    """By name of each medqa source, its answer formats and books, and what was left out."""
    return {one.source.name: one.rows.describe() for one in opened if isinstance(one.rows, ExamRows)}


def describe_files(opened: list[OpenSource]) -> dict[str, str]:
    """By name of each source with files, what it takes of its paths and what they hold beside that."""
    return {one.source.name: one.files.describe() for one in opened if one.files.taken}


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


def open_text(source: Source, files: SourceFiles, arguments: DataArguments, seed: int) -> OpenSource:
    """A text source: documents of its `validation_path`, or else its own first ones, are held out."""
    rows = text_rows(source.key, source, files, arguments, seed)
    if source.validation_path:
        first_documents(rows, 1)  # the source itself can be read too
        key = f"{source.key}.validation_path"
        files_held_out = find_files(key, [source.validation_path], splits=HELD_OUT_SPLITS)
        held_out = text_rows(key, source, files_held_out, arguments, seed)
        texts = [text for *_, text in first_documents(held_out, source.validation_documents)]
        return OpenSource(source, rows, texts, files=files)
    documents = first_documents(rows, source.validation_documents)
    if len(documents) < source.validation_documents:
        one_each = f" ({ONE_DOCUMENT})" if all(lower_name(file).endswith(DOCUMENTS) for file in files.taken) else ""
        raise InputError(
            f"{source.key}: '{source.paths[0]}' has no more than {len(documents)} documents{one_each}, and "
            f"validation_documents holds out {source.validation_documents}; hold out fewer, or give it a "
            "validation_path"
        )
    rows.held_out = {shard: number + 1 for shard, number, _ in documents}  # of each shard the last one counts
    return OpenSource(source, rows, [text for *_, text in documents], files=files)


def text_rows(key: str, source: Source, files: SourceFiles, arguments: DataArguments, seed: int) -> TextRows:
    """The rows of some files of a text source."""
    shards = split_files(key, files.taken, arguments.streaming_timeout)
    timeout, skip_broken = arguments.streaming_timeout, arguments.skip_broken_files
    return TextRows(key, shards, source.column, timeout, seed, skip_broken=skip_broken)


def first_documents(rows: TextRows, count: int) -> list[tuple[int, int, str]]:
    """The first `count` documents of a source, as they lie in its files, with their shard and row."""
    documents: list[tuple[int, int, str]] = []
    faults, last = 0, ""
    for shard, number, value in rows.read_in_order():
        if not isinstance(value, Fault):
            documents.append((shard, number, value))
            if len(documents) == count:
                break
            continue
        faults, last = faults + 1, f"{rows.locate(shard, number)}: {value}"
        if faults > FREE_FAULTS + len(documents):
            raise InputError(f"{rows.key}: most of its first rows cannot be used; {last}")
    if not documents:
        raise InputError(f"{rows.key}: no text in {rows.name}; {last or 'it has no rows'}")
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
    opened: list[OpenSource], tokenize: DocumentTokenizer, sequence_length: int, max_rows: int
) -> list[TokenSequence[Any]]:
    """Up to `max_rows` held-out rows in the proportions of the mixture, always the same; no document comes twice.

    Each has `input_ids`, int32 of shape (sequence_length,), and the name of its `source`.
    """
    packed = {one.source.name: pack_in_order(iter(one.held_out), tokenize, sequence_length) for one in opened}
    rows = list(islice(mixed_sequences(packed, Schedule(integer_weights([one.source for one in opened]))), max_rows))
    if not rows:
        raise InputError(
            f"sources: the held-out documents do not fill one row of {sequence_length} tokens for each source"
        )
    return rows


def outside_documents(sources: list[Source], arguments: DataArguments) -> list[tuple[Source, list[str]]]:
    """The documents of texts outside the mixture, each source with its own.

    Raises:
        InputError: a source cannot be read.
    """
    documents = []
    for source in sources:
        try:
            found = first_documents(outside_rows(source, arguments), source.validation_documents)
        except SourceFailed as error:
            raise InputError(str(error)) from error
        documents.append((source, [text for *_, text in found]))
    return documents


def validation_source_sequences(
    documents: list[tuple[Source, list[str]]], tokenize: DocumentTokenizer, arguments: DataArguments
) -> list[TokenSequence[Any]]:
    """Sequences of texts outside the mixture, up to `validation_sequences` a source, as `validation_mixture` does.

    Raises:
        InputError: a source does not fill a row.
    """
    rows: list[TokenSequence[Any]] = []
    for source, texts in documents:
        packed = pack_in_order(iter(texts), tokenize, arguments.max_seq_length)
        of_source: list[TokenSequence[Any]] = [
            {"input_ids": row, "source": source.name} for row in islice(packed, arguments.validation_sequences)
        ]
        if not of_source:
            raise InputError(f"{source.key}: {len(texts)} documents do not fill a row")
        rows += of_source
    return rows


def outside_rows(source: Source, arguments: DataArguments) -> TextRows:
    """The rows of a text outside the mixture."""
    files = find_files(source.key, source.paths, source.config, HELD_OUT_SPLITS)
    return text_rows(source.key, source, files, arguments, 0)


def mixed_sequences(packed: dict[str, Iterator[np.ndarray]], schedule: Schedule) -> Iterator[TokenSequence[Any]]:
    """Rows in the order of a schedule, up to the end of the first source that ends."""
    while (row := next(packed[name := schedule.next_source()], None)) is not None:
        schedule.draw(name)
        yield {"input_ids": row, "source": name}
