"""The rows of one shard of a source, each a text or the reason why it is none, from any row on."""

import codecs
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..compression import DECOMPRESSION_ERRORS
from ..errors import first_line
from .files import DOCUMENTS, Shard, lower_name
from .lines import MAX_BYTES, MAX_CHARACTERS, decompressed, records_of
from .remote import SourceFailed, open_file

BROKEN = "broken file"
GIT_LFS = b"version https://git-lfs"
ONE_DOCUMENT = "a .txt file is one document: write each document to a file of its own, or to a line of a .jsonl file"


@dataclass(frozen=True)
class Fault:
    """A row that holds no document: `reason` is what faults are counted by, `detail` what a message adds.

    `size` is the number of bytes that are lost with it, where that is known. `share` is that of the whole source which
    is in a file that breaks off.
    """

    reason: str
    detail: str = ""
    size: int = 0
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


LOST = Fault("after an unreadable one")  # in its row group


def read_shard(
    key: str,
    shard: Shard,
    column: str,
    timeout: float,
    rng: random.Random | None = None,
    start: int = 0,
    skip_broken: bool = False,
) -> Iterator[tuple[int, str | Fault]]:
    """The rows of a shard from the `start`-th on, each with its number in the file's own order.

    Args:
        column: the column that holds the text; a `.txt` file is one document.
        timeout: seconds for which a failing read of a remote file is tried again.
        rng: shuffles the row groups of a parquet file; without it they come in order.
        skip_broken: a file that cannot be opened at all is one `Fault`.

    Raises:
        SourceFailed: the file is gone, cannot be reached for longer than the timeout or opened at all, or is parquet
            without a text column of that name.
    """
    name = lower_name(shard.path)
    try:
        with open_file(key, shard.path, timeout) as file:
            if name.endswith(".parquet"):
                rows = parquet_rows(key, shard.path, file, column, rng, start)
            elif name.endswith(DOCUMENTS):
                rows = islice(enumerate([document_of(file)]), start, None)
            else:
                rows = islice(enumerate(texts_of(file, shard, column)), start, None)
            for number, value in rows:
                if isinstance(value, Fault) and value.reason == BROKEN and number == 0 and not skip_broken:
                    raise SourceFailed(cannot_open(key, shard.path, value.detail))
                yield number, value
    except OSError as error:
        raise SourceFailed(f"{key}: cannot read '{shard.path}': {first_line(error)}") from error


def cannot_open(key: str, path: str, why: str) -> str:
    """The message for a file that cannot be opened at all."""
    return (
        f"{key}: cannot open '{path}': {why}; mend it, take it out of path, or set skip_broken_files: true to leave "
        "out such files"
    )


def why_not_opened(key: str, path: str, column: str) -> str | None:
    """Why a local file cannot be opened at all; None if it can.

    Raises:
        SourceFailed: it is parquet without a text column of that name.
    """
    name = lower_name(path)
    try:
        with open(path, "rb") as file:
            if file.read(len(GIT_LFS)) == GIT_LFS:
                return "it is a pointer of Git LFS, not the data; git lfs pull fetches them"
            file.seek(0)
            if name.endswith(".parquet"):
                check_column(key, path, pq.ParquetFile(file).schema_arrow, column)
            else:
                decompressed(file, path).read(1)
    except (pa.ArrowException, *DECOMPRESSION_ERRORS) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def document_of(file: BinaryIO) -> str | Fault:
    """The text of a `.txt` file, without a byte order mark. With a fault the whole file is lost."""
    text = to_text(file.read(MAX_BYTES).removeprefix(codecs.BOM_UTF8))
    if isinstance(text, str):
        return text
    detail = f"{text.detail}; {ONE_DOCUMENT}" if text.reason == "too long" else text.detail
    return replace(text, detail=detail, size=file.seek(0, io.SEEK_END))


def texts_of(file: BinaryIO, shard: Shard, column: str) -> Iterator[str | Fault]:
    """The texts of lines or of an array; a file that breaks off or is damaged ends with a `Fault`."""
    try:
        for record, size in records_of(file, shard):
            if size >= MAX_BYTES:
                yield Fault("too long", f"{size:,} bytes", size)
                continue
            text = text_of_record(record, column)
            yield replace(text, size=size) if isinstance(text, Fault) and text.reason != "too long" else text
    except (*DECOMPRESSION_ERRORS, ValueError) as error:
        yield Fault(BROKEN, f"{type(error).__name__}: {first_line(error)}")


def text_of_record(record: bytes | dict[str, Any], column: str) -> str | Fault:
    """The text in a field of a JSON object."""
    try:
        row = json.loads(record) if isinstance(record, bytes) else record
    except UnicodeError as error:
        return Fault("not UTF-8", first_line(error))
    except (ValueError, RecursionError) as error:
        return Fault("not JSON", first_line(error))
    if not isinstance(row, dict):
        return Fault("no text", f"it is {described(row)}, not an object")
    if column not in row:
        return Fault("no text", f"it has no '{column}', only {sorted(row)}")
    return to_text(row[column])


def to_text(value: object) -> str | Fault:
    """The text that a value is, or its UTF-8 bytes are."""
    if isinstance(value, Fault):
        return value
    if isinstance(value, bytes) and len(value) >= MAX_BYTES:
        return Fault("too long", f"over {MAX_BYTES:,} bytes")
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str) or not text.strip():
            return Fault("no text", f"it is {described(text)}")
        text.encode()  # half of a surrogate pair, which JSON can spell, is no text
    except UnicodeError as error:
        return Fault("not UTF-8", first_line(error), len(value) if isinstance(value, bytes) else 0)
    if len(text) > MAX_CHARACTERS:
        return Fault("too long", f"{len(text):,} characters")
    return text


def described(value: object) -> str:
    """Describe a non-text value for an error message."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"{len(value):,} blanks" if value else "empty"
    if isinstance(value, dict):
        return f"an object of {sorted(value)}"
    if isinstance(value, list):
        return f"a list of {len(value):,}" + (f", the first of which is {described_kind(value[0])}" if value else "")
    return described_kind(value)


def described_kind(value: object) -> str:
    """The kind of a value."""
    kinds = {str: "text", bool: "true or false", dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value), f"the number {value}")


def parquet_rows(
    key: str, path: str, file: BinaryIO, column: str, rng: random.Random | None, start: int
) -> Iterator[tuple[int, str | Fault]]:
    """The texts of a column, row group by row group; row groups before `start` are not read."""
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
            rows = group_rows(parquet, group, column, sum(sizes[:group]), sizes[group])
            yield from ((number, to_text(value)) for number, value in islice(rows, start, None))
        start = max(0, start - sizes[group])


def check_column(key: str, path: str, schema: pa.Schema, column: str) -> None:
    """Raise `SourceFailed` if a parquet file has no column of that name, or one that holds no text."""
    if column not in schema.names:
        raise SourceFailed(f"{key}: '{path}' has no column '{column}'; its columns are {schema.names}")
    kind = schema.field(column).type
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_kind(held) for is_kind in (*text, pa.types.is_binary, pa.types.is_large_binary)):
        raise SourceFailed(
            f"{key}: column '{column}' of '{path}' is {kind}, not text; name a text column, or write one out of it"
        )


def group_rows(
    parquet: pq.ParquetFile, group: int, column: str, first: int, size: int
) -> Iterator[tuple[int, str | bytes | Fault | None]]:
    """Numbered values of one row group; where a page cannot be read, so are the group's rows after it."""
    number = first
    try:
        for batch in parquet.iter_batches(1024, row_groups=[group], columns=[column], use_threads=False):
            for value in values_of(batch.column(0)):
                yield number, value
                number += 1
    except (pa.ArrowException, OSError) as error:
        yield number, Fault("unreadable", first_line(error))
        yield from zip(range(number + 1, first + size), repeat(LOST), strict=False)


def values_of(array: pa.Array) -> list[str | bytes | None]:
    """An array as Python values; as bytes where some text in it is not UTF-8."""
    values: list[str | bytes | None]
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
        values = array.cast(binary).to_pylist()
    return values
