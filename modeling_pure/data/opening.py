"""Open a recipe's sources: find files and questions, and select validation documents, identically on every rank.

This runs before training starts, so that data errors surface early. If two sources list the same file and column, the
first one gets it; validation documents of one source are excluded from all.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..files import SourceFiles, files_below, find_files, identity, is_document, looks_local
from ..medqa.passages import Library
from ..medqa.question_files import ENDINGS, files_to_read
from ..medqa.questions import Question, read_questions, select_split
from ..tokenizer import load_document_tokenizer
from .arguments import DataArguments, Source
from .decoders import ONE_DOCUMENT, Fault, cannot_open, why_not_opened
from .documents import FREE_FAULTS
from .remote import failures_as_input_errors
from .shards import split_files
from .source_records import ExamRecords, OpenBook, TextRecords
from .tokenizer import DocumentTokenizer

VALIDATION_SPLITS = ("validation", "test", "train")  # the first that exists is for validation


@dataclass
class OpenSource:
    """A source, its records to train on, and its validation documents.

    `dev` holds the dev questions of a medqa source. `files` is empty for questions on the Hub.
    """

    source: Source
    records: TextRecords | ExamRecords
    validation_texts: list[str]
    dev: list[Question] = field(default_factory=list)
    files: SourceFiles = field(default_factory=SourceFiles)


@dataclass
class OpenData:
    """The sources of the mixture, the texts outside it, and the questions of the option `decontaminate`."""

    sources: list[OpenSource]
    outside: list[OpenSource]
    decontaminate: list[Question]

    @property
    def evaluation_questions(self) -> list[Question]:
        """The questions that no training document may contain."""
        return [question for one in self.sources for question in one.dev] + self.decontaminate

    @property
    def validation_texts(self) -> frozenset[str]:
        """The validation documents of all text sources. Training skips every copy of them, in any file."""
        texts = [one for one in (*self.sources, *self.outside) if isinstance(one.records, TextRecords)]
        return frozenset(text for one in texts for text in one.validation_texts)

    def describe(self) -> dict[str, str]:
        """Entries of the start-up block: the files read and, for medqa sources, the answer formats."""
        files = {f"files of {one.source.name}": one.files.describe() for one in self.sources if one.files.taken}
        exams = {one.source.name: one.records for one in self.sources if isinstance(one.records, ExamRecords)}
        return files | {f"answers of {name}": records.describe() for name, records in exams.items()}


@failures_as_input_errors()
def open_sources(sources: list[Source], arguments: DataArguments, seed: int) -> OpenData:
    """Find the files of every source and read its validation documents; raises `InputError` for wrong data."""
    files = training_files(sources, arguments)
    validation = validation_files([*sources, *arguments.outside])
    check_validation_files(files, validation)
    paths = arguments.decontaminate or []
    questions = [question for path in paths for question in read_questions("decontaminate", path, split="test")]
    opened = [
        open_exam(source, questions, arguments, seed)
        if source.format == "medqa"
        else open_text(source, files[source.name], validation.get(f"{source.key}.validation_path"), arguments, seed)
        for source in sources
    ]
    exclude_validation_records(opened)
    outside = [open_outside(source, validation[source.key], arguments) for source in arguments.outside]
    return OpenData(opened, outside, questions)


# ---- files ----------------------------------------------------------------------------------------------------------


def training_files(sources: list[Source], arguments: DataArguments) -> dict[str, SourceFiles]:
    """The files of each text source. A file that two sources read from the same column belongs to the first."""
    files: dict[str, SourceFiles] = {}
    known: dict[object, str] = {}
    for source in (source for source in sources if source.format == "text"):
        found = find_files(source.key, source.paths, source.config)
        if source.config and not any(file.startswith("hf://") for file in found.taken):
            found.remark = f"; config {source.config} is ignored: only Hub data sets have one"
        texts = {file: (identity(file), None if is_document(file) else source.column) for file in found.taken}
        again = {file: known[text] for file, text in texts.items() if text in known}
        found.taken = [file for file in found.taken if file not in again]
        for name in dict.fromkeys(again.values()):
            found.leave_out(f"already in sources.{name}", [file for file in again if again[file] == name])
        if not found.taken:
            others = ", ".join(f"sources.{name}" for name in dict.fromkeys(again.values()))
            raise InputError(f"{source.key}.path: all its files are already in {others}")
        leave_out_broken(source, found, arguments)
        known |= {texts[file]: source.name for file in found.taken}
        files[source.name] = found
    return files


def leave_out_broken(source: Source, found: SourceFiles, arguments: DataArguments) -> None:
    """Leave out local files that cannot be opened; `InputError` if that is not allowed, or none would be left."""
    local = [file for file in found.taken if "://" not in file]
    broken = {file: why for file in local if (why := why_not_opened(source.key, file, source.column))}
    if not broken:
        return
    file, why = next(iter(broken.items()))
    if not arguments.skip_broken_files or len(broken) == len(found.taken):
        many = f" ({len(broken):,} of {len(found.taken):,} files)" if len(found.taken) > 1 else ""
        raise InputError(cannot_open(source.key, file, why + many))
    found.taken = [file for file in found.taken if file not in broken]
    found.leave_out("cannot be opened", list(broken))


def validation_files(sources: list[Source]) -> dict[str, SourceFiles]:
    """By recipe key, the files of all `validation_path`s of text sources and of the texts outside the mixture."""
    files = {}
    for source in sources:
        key = f"{source.key}.validation_path"
        if source.section != "sources":
            files[source.key] = find_files(source.key, source.paths, source.config, VALIDATION_SPLITS)
        elif source.format == "text" and source.validation_path:
            files[key] = find_files(key, [source.validation_path], splits=VALIDATION_SPLITS)
    return files


def check_validation_files(training: dict[str, SourceFiles], validation: dict[str, SourceFiles]) -> None:
    """Raise `InputError` if a file to validate on is also a file to train on."""
    trained = {identity(file): (name, file) for name, found in training.items() for file in found.taken}
    for key, found in validation.items():
        for file in found.taken:
            if identity(file) in trained:
                name, path = trained[identity(file)]
                raise InputError(f"{key}: '{file}' is among the files to train on: '{path}' of sources.{name}")


# ---- text -----------------------------------------------------------------------------------------------------------


def open_text(
    source: Source, files: SourceFiles, validation: SourceFiles | None, arguments: DataArguments, seed: int
) -> OpenSource:
    """Open a text source; validation documents come from `validation_path` if set, else from its own start."""
    records = text_records(source.key, source, files, arguments, seed)
    if validation:
        first_documents(records, 1)  # check that the source itself can be read, too
        of_path = text_records(f"{source.key}.validation_path", source, validation, arguments, seed)
        documents = first_documents(of_path, source.validation_documents)
        return OpenSource(source, records, [text for *_, text in documents], files=files)
    documents = first_documents(records, source.validation_documents)
    if len(documents) < source.validation_documents:
        one_each = f" ({ONE_DOCUMENT})" if all(map(is_document, files.taken)) else ""
        raise InputError(
            f"{source.key}: '{source.paths[0]}' has only {len(documents)} documents{one_each}, fewer than "
            f"validation_documents ({source.validation_documents}); lower it, or set validation_path"
        )
    records.validation_records = {shard: number + 1 for shard, number, _ in documents}  # a count
    return OpenSource(source, records, [text for *_, text in documents], files=files)


def open_outside(source: Source, files: SourceFiles, arguments: DataArguments) -> OpenSource:
    """Open a text outside the mixture."""
    records = text_records(source.key, source, files, arguments, 0)
    documents = first_documents(records, source.validation_documents)
    return OpenSource(source, records, [text for *_, text in documents], files=files)


def text_records(key: str, source: Source, files: SourceFiles, arguments: DataArguments, seed: int) -> TextRecords:
    """The records in files of a text source."""
    shards = split_files(key, files.taken, arguments.streaming_timeout)
    timeout, skip_broken = arguments.streaming_timeout, arguments.skip_broken_files
    return TextRecords(key, shards, source.column, timeout, seed, skip_broken=skip_broken)


def first_documents(records: TextRecords, count: int) -> list[tuple[int, int, str]]:
    """The first `count` documents of a source in the order of its files, each as (shard, record, text)."""
    documents: list[tuple[int, int, str]] = []
    faults, last = 0, ""
    for shard, number, value in records.read_in_order():
        if not isinstance(value, Fault):
            documents.append((shard, number, value))
            if len(documents) == count:
                break
            continue
        faults, last = faults + 1, f"{records.locate(shard, number)}: {value}"
        if faults > FREE_FAULTS + len(documents):
            raise InputError(f"{records.key}: most of its first records cannot be used; {last}")
    if not documents:
        raise InputError(f"{records.key}: no text in {records.name}; {last or 'it has no records'}")
    return documents


def exclude_validation_records(opened: Iterable[OpenSource]) -> None:
    """Exclude validation records from every source that reads the same file, perhaps from another column."""
    texts = [one.records for one in opened if isinstance(one.records, TextRecords)]
    counts: dict[tuple[object, int], int] = {}
    for one in texts:
        for shard, count in one.validation_records.items():
            place = (identity(one.shards[shard].path), one.shards[shard].begin)
            counts[place] = max(count, counts.get(place, 0))
    for one in texts:
        places = ((identity(shard.path), shard.begin) for shard in one.shards)
        one.validation_records = {shard: counts[place] for shard, place in enumerate(places) if place in counts}


# ---- MedQA questions ------------------------------------------------------------------------------------------------


def open_exam(source: Source, decontaminate: list[Question], arguments: DataArguments, seed: int) -> OpenSource:
    """Open a medqa source; its dev questions are for validation."""
    train, dev, questions = split_questions(source, arguments.grpo_holdout)
    if not train:
        raise InputError(f"{source.key}: no question of '{source.paths[0]}' is left for training")
    formats = source.answer_formats or {"letter": 1.0}
    check_explanations(source.key, formats, train, dev)
    open_book, with_passages = None, dev
    if source.passages:
        # No passage may cover a question, including the questions kept for GRPO.
        protected = [*questions, *dev, *decontaminate]
        library = Library.read(f"{source.key}.passages", source.passages, protected)
        number, share = source.num_passages or 0, source.passages_share or 0.0
        train, with_passages = library.retrieve(train, number), library.retrieve(dev, number)
        tokenize = DocumentTokenizer(load_document_tokenizer(arguments.tokenizer_name_or_path))
        open_book = OpenBook(share, len(library), library.left_out, tokenize, arguments.max_seq_length)
    records = ExamRecords(source.key, train, seed, formats, open_book)
    validation_texts = ExamRecords(source.key, with_passages, 0, formats, open_book).texts()
    return OpenSource(source, records, validation_texts, dev, exam_files(source))


def split_questions(source: Source, grpo_holdout: float) -> tuple[list[Question], list[Question], list[Question]]:
    """The questions of a medqa source: to train on, without copies of dev questions; for validation; and all."""
    questions = read_questions(source.key, source.paths[0], source.config)
    train = select_split(questions, "train", grpo_holdout=grpo_holdout)
    if source.validation_path:
        dev = read_questions(f"{source.key}.validation_path", source.validation_path)
    else:
        dev = select_split(questions, "dev")
    if not dev:
        raise InputError(f"{source.key}: '{source.paths[0]}' has no dev questions; set validation_path")
    digests = {question.digest for question in dev}
    return [question for question in train if question.digest not in digests], dev, questions


def check_explanations(key: str, formats: dict[str, float], train: list[Question], dev: list[Question]) -> None:
    """Raise `InputError` if `reasoned` answers are wanted, and no train or dev question has an explanation."""
    if "reasoned" not in formats:
        return
    for kind, questions, required in (("train", train, True), ("dev", dev, len(formats) == 1)):
        if required and not any(question.explanation for question in questions):
            raise InputError(
                f"{key}.answer_formats: reasoned needs explanations, and none of the {len(questions):,} {kind} "
                "questions has one; use another format, or a data set with explanations (MedMCQA's column exp)"
            )


def exam_files(source: Source) -> SourceFiles:
    """The local files that the questions of a medqa source come from."""
    (path,), found = source.paths, SourceFiles()
    if looks_local(path, ENDINGS):
        found.taken = files_to_read(source.key, path, "train")
        others = map(str, files_below(path)) if Path(path).is_dir() else []
        found.leave_out("not questions to train on", [file for file in others if file not in found.taken])
    return found
