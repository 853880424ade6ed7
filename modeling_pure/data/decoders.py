"""Decode a shard into records, from any record on: a text, or the fault that makes the record unusable."""

import codecs
import io
import json
import random
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import PurePath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..compression import DECOMPRESSION_ERRORS, DECOMPRESSORS
from ..errors import first_line
from ..files import is_document, lower_name
from .remote import SourceFailed, open_file
from .shards import ARRAY, Shard

MAX_CHARACTERS = 10_000_000  # of a document: over 2M tokens, longer than any book
MAX_BYTES = 4 * MAX_CHARACTERS + 1000  # read of a line or a .txt file
BROKEN = "broken file"
GIT_LFS = b"version https://git-lfs"
ONE_DOCUMENT = "a .txt file is one document: write each document to its own file, or to a line of a .jsonl file"
BETWEEN_OBJECTS = re.compile(r"[\s,\[\]]*")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Fault:
    """Why a record has no document.

    Attributes:
        reason: the kind of fault, by which faults are counted.
        detail: what messages add.
        size: bytes lost, if known.
        share: the share of the source that is lost in a truncated file.
    """

    reason: str
    detail: str = ""
    size: int = 0
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


LOST = Fault("after an unreadable one")  # in the same row group


def read_shard(
    key: str,
    shard: Shard,
    column: str,
    timeout: float,
    rng: random.Random | None = None,
    start: int = 0,
    skip_broken: bool = False,
) -> Iterator[tuple[int, str | Fault]]:
    """Yield the records of a shard from the `start`-th on, each with its number in the order of the file.

    Args:
        timeout: seconds for which a failing read of a remote file is retried.
        rng: shuffles the row groups of a parquet file; None keeps their order.
        skip_broken: a file that cannot be opened is one `Fault` instead of an error.

    Raises:
        SourceFailed: the file cannot be read, or is a parquet file without a text column of that name.
    """
    try:
        with open_file(key, shard.path, timeout) as file:
            if lower_name(shard.path).endswith(".parquet"):
                records = parquet_records(key, shard.path, file, column, rng, start)
            else:
                texts = iter([document_of(file)]) if is_document(shard.path) else texts_of(file, shard, column)
                records = islice(enumerate(texts), start, None)
            for number, value in records:
                if isinstance(value, Fault) and value.reason == BROKEN and number == 0 and not skip_broken:
                    raise SourceFailed(cannot_open(key, shard.path, value.detail))
                yield number, value
    except OSError as error:
        raise SourceFailed(f"{key}: cannot read '{shard.path}': {first_line(error)}") from error


def cannot_open(key: str, path: str, why: str) -> str:
    """The message for a file that cannot be opened."""
    return f"{key}: cannot open '{path}': {why}; repair it, remove it from path, or set skip_broken_files: true"


def why_not_opened(key: str, path: str, column: str) -> str | None:
    """Why a local file cannot be opened, or None; `SourceFailed` if a parquet file lacks the text column."""
    try:
        with open(path, "rb") as file:
            if file.read(len(GIT_LFS)) == GIT_LFS:
                return "it is a Git LFS pointer; download the data with git lfs pull"
            file.seek(0)
            if lower_name(path).endswith(".parquet"):
                check_column(key, path, pq.ParquetFile(file).schema_arrow, column)
            else:
                decompressed(file, path).read(1)
    except (pa.ArrowException, *DECOMPRESSION_ERRORS) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


# ---- values to texts ------------------------------------------------------------------------------------------------


def document_of(file: BinaryIO) -> str | Fault:
    """The text of a `.txt` file without its byte order mark; a fault loses the whole file."""
    text = to_text(file.read(MAX_BYTES).removeprefix(codecs.BOM_UTF8))
    if isinstance(text, str):
        return text
    detail = f"{text.detail}; {ONE_DOCUMENT}" if text.reason == "too long" else text.detail
    return replace(text, detail=detail, size=file.seek(0, io.SEEK_END))


def texts_of(file: BinaryIO, shard: Shard, column: str) -> Iterator[str | Fault]:
    """The texts of lines or of an array; a truncated or damaged file ends with a `Fault`."""
    try:
        for record, size in objects_of(file, shard):
            if size >= MAX_BYTES:
                yield Fault("too long", f"{size:,} bytes", size)
                continue
            text = text_of_object(record, column)
            yield replace(text, size=size) if isinstance(text, Fault) and text.reason != "too long" else text
    except (*DECOMPRESSION_ERRORS, ValueError) as error:
        yield Fault(BROKEN, f"{type(error).__name__}: {first_line(error)}")


def text_of_object(record: bytes | dict[str, Any], column: str) -> str | Fault:
    """The text in a field of a JSON object."""
    try:
        fields = json.loads(record) if isinstance(record, bytes) else record
    except UnicodeError as error:
        return Fault("not UTF-8", first_line(error))
    except (ValueError, RecursionError) as error:
        return Fault("not JSON", first_line(error))
    if not isinstance(fields, dict):
        return Fault("no text", f"expected an object, found {reprlib.repr(fields)}")
    if column not in fields:
        return Fault("no text", f"no '{column}', only {sorted(fields)}")
    return to_text(fields[column])


def to_text(value: object) -> str | Fault:
    """The text of a string or of UTF-8 bytes."""
    if isinstance(value, Fault):
        return value
    if isinstance(value, bytes) and len(value) >= MAX_BYTES:
        return Fault("too long", f"over {MAX_BYTES:,} bytes")
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str) or not text.strip():
            return Fault("no text", f"found {reprlib.repr(text)}")
        text.encode()  # fails for half of a surrogate pair, which JSON allows
    except UnicodeError as error:
        return Fault("not UTF-8", first_line(error), len(value) if isinstance(value, bytes) else 0)
    if len(text) > MAX_CHARACTERS:
        return Fault("too long", f"{len(text):,} characters")
    return text


# ---- lines and arrays -----------------------------------------------------------------------------------------------


def decompressed(file: BinaryIO, path: str) -> Any:
    """The stream of a file, decompressed according to its suffix."""
    decompress = DECOMPRESSORS.get(PurePath(lower_name(path)).suffix)
    return decompress(file) if decompress else file


def objects_of(file: BinaryIO, shard: Shard) -> Iterator[tuple[bytes | dict[str, Any], int]]:
    """The records of a shard with their sizes in bytes: lines that are not blank, or the objects of an array.

    A truncated or damaged file raises one of `DECOMPRESSION_ERRORS`, or `ValueError` in an array.
    """
    stream = decompressed(file, shard.path)
    if shard.end is None and shard.begin == 0 and ARRAY.match(stream.peek(4096)[:4096]):
        yield from array_objects(stream)
    elif stream is file:
        yield from lines_of_range(stream, shard)
    else:
        yield from ((line, length) for line, length in bounded_lines(stream) if line.strip())


def array_objects(stream: BinaryIO) -> Iterator[tuple[dict[str, Any], int]]:
    """Stream the objects of a JSON array; `ValueError` if it is damaged or an object is too long."""
    decoder = json.JSONDecoder()
    # A byte that is not UTF-8 spoils only the text that contains it.
    characters = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    text, place, bracket = "", 0, ""
    while True:
        gap: re.Match[str] = BETWEEN_OBJECTS.match(text, place)  # type: ignore[assignment]  # it matches anywhere
        place, bracket = gap.end(), ([bracket] + [one for one in gap[0] if one in "[]"])[-1]
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            text, place = text[place:], 0
            more = stream.read(max(CHUNK, len(text))) if len(text) <= MAX_BYTES else b""
            if not more and (text or bracket != "]"):
                raise ValueError(f"in an array: {first_line(error)}") from error
            if not more:
                return
            text += characters.decode(more)
            continue
        yield value, end - place
        place = end


def lines_of_range(file: BinaryIO, shard: Shard) -> Iterator[tuple[bytes, int]]:
    """The lines whose first byte is in the shard, with their lengths."""
    position = shard.begin
    if position:  # skip the line that begins in the shard before
        file.seek(position - 1)
        position += len(file.readline()) - 1
    for line, length in bounded_lines(file):
        if shard.end is not None and position >= shard.end:
            return
        position += length
        if line.strip():
            yield line, length


def bounded_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines of a file, each cut at `MAX_BYTES`, with their full lengths."""
    while line := file.readline(MAX_BYTES):
        length, end = len(line), line
        while len(end) == MAX_BYTES and not end.endswith(b"\n"):
            end = file.readline(MAX_BYTES)
            length += len(end)
        yield line, length


# ---- parquet --------------------------------------------------------------------------------------------------------


def parquet_records(
    key: str, path: str, file: BinaryIO, column: str, rng: random.Random | None, start: int
) -> Iterator[tuple[int, str | Fault]]:
    """The texts of a column, one row group after another; row groups before `start` are not read."""
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        if start == 0:
            yield 0, Fault(BROKEN, first_line(error))
        return
    check_column(key, path, parquet.schema_arrow, column)
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    order = list(range(len(sizes)))
    if rng:
        rng.shuffle(order)
    for group in order:
        if start < sizes[group]:
            values = values_of_group(parquet, group, column, sum(sizes[:group]), sizes[group])
            yield from ((number, to_text(value)) for number, value in islice(values, start, None))
        start = max(0, start - sizes[group])


def check_column(key: str, path: str, schema: pa.Schema, column: str) -> None:
    """Raise `SourceFailed` if a parquet file has no column of that name, or one that is not text."""
    if column not in schema.names:
        raise SourceFailed(f"{key}: '{path}' has no column '{column}'; its columns are {schema.names}")
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_kind(value) for is_kind in (*text, pa.types.is_binary, pa.types.is_large_binary)):
        raise SourceFailed(f"{key}: column '{column}' of '{path}' is {kind}, not text; name a text column, or add one")


def values_of_group(
    parquet: pq.ParquetFile, group: int, column: str, first: int, size: int
) -> Iterator[tuple[int, str | bytes | Fault | None]]:
    """The numbered values of one row group; those after an unreadable page are lost."""
    number = first
    try:
        for batch in parquet.iter_batches(1024, row_groups=[group], columns=[column], use_threads=False):
            texts = batch.column(0)
            try:
                values = texts.to_pylist()
            except UnicodeDecodeError:  # as bytes, so that only the texts that are not UTF-8 are faults
                binary = pa.large_binary() if pa.types.is_large_string(texts.type) else pa.binary()
                values = texts.cast(binary).to_pylist()
            for value in values:
                yield number, value
                number += 1
    except (pa.ArrowException, OSError) as error:
        yield number, Fault("unreadable", first_line(error))
        yield from zip(range(number + 1, first + size), repeat(LOST), strict=False)
