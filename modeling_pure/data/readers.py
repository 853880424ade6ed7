"""The rows of one piece of a source, each a text or the reason why it is none, from any row on."""

import bz2
import gzip
import json
import lzma
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import first_line
from .files import DOCUMENTS, Piece
from .remote import SourceFailed, open_file

MAX_CHARACTERS = 10_000_000  # of one document: over 2M tokens, longer than any book
MAX_BYTES = 4 * MAX_CHARACTERS + 1000  # of a line or a .txt file: no more is read of one before it is given up
DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DECOMPRESSION_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Fault:
    """A row that holds no document: `reason` is what faults are counted by, `detail` what a message adds."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


LOST = Fault("after an unreadable one")  # in its row group: one damage, so that one of them counts as a fault


def read_piece(
    key: str, piece: Piece, column: str, timeout: float, rng: random.Random | None = None, start: int = 0
) -> Iterator[tuple[int, str | Fault]]:
    """The rows of a piece from the `start`-th on, each with its number in the file's own order.

    Args:
        column: the column that holds the text; a `.txt` file is one document.
        timeout: seconds for which a failing read of a remote file is tried again.
        rng: shuffles the row groups of a parquet file; without it they come in order.

    Raises:
        SourceFailed: the file is gone, cannot be reached for longer than the timeout, or is parquet without column.
    """
    name = piece.path.split("?")[0]
    try:
        with open_file(key, piece.path, timeout) as file:
            if name.endswith(".parquet"):
                rows = parquet_rows(key, piece.path, file, column, rng, start)
            elif name.endswith(DOCUMENTS):
                rows = islice(enumerate([file.read(MAX_BYTES)]), start, None)
            else:
                rows = islice(enumerate(lines_of(file, piece)), start, None)
            for number, value in rows:
                yield number, to_text(value, None if name.endswith((".parquet", *DOCUMENTS)) else column)
    except OSError as error:
        raise SourceFailed(f"{key}: cannot read '{piece.path}': {first_line(error)}") from error


def to_text(value: object, column: str | None) -> str | Fault:
    """The text in a value: of a text or UTF-8 bytes, or, with a `column`, of that field of a JSON object in bytes."""
    if isinstance(value, Fault):
        return value
    if isinstance(value, bytes) and len(value) >= MAX_BYTES:
        return Fault("too long", f"over {MAX_BYTES:,} bytes")
    try:
        if column is not None and isinstance(value, str | bytes):
            row = json.loads(value)
            value = row.get(column) if isinstance(row, dict) else None
            if value is None and isinstance(row, dict) and column not in row:
                return Fault("no text", f"it has no '{column}', only {sorted(row)}")
        if isinstance(value, bytes):
            value = value.decode()
        if not isinstance(value, str) or not value.strip():
            return Fault("no text")
        value.encode()  # half of a surrogate pair, which JSON can spell, is no text
    except UnicodeError as error:
        return Fault("not UTF-8", first_line(error))
    except (ValueError, RecursionError) as error:
        return Fault("not JSON", first_line(error))
    if len(value) > MAX_CHARACTERS:
        return Fault("too long", f"{len(value):,} characters")
    return value


def lines_of(file: BinaryIO, piece: Piece) -> Iterator[bytes | Fault]:
    """The lines of a piece that are not blank; a compressed file that breaks off or is damaged ends with a `Fault`."""
    decompress = DECOMPRESSORS.get(Path(piece.path.split("?")[0]).suffix)
    if decompress is None:
        yield from lines_of_range(file, piece)
        return
    try:
        yield from (line for line, _ in bounded_lines(decompress(file)) if line.strip())
    except DECOMPRESSION_ERRORS as error:
        yield Fault("broken file", f"{type(error).__name__}: {first_line(error)}")


def lines_of_range(file: BinaryIO, piece: Piece) -> Iterator[bytes]:
    """The lines whose first byte lies in the piece."""
    position = piece.begin
    if position:  # the line that the byte before the piece belongs to is the other piece's
        file.seek(position - 1)
        position += len(file.readline()) - 1
    for line, length in bounded_lines(file):
        if piece.end is not None and position >= piece.end:
            return
        position += length
        if line.strip():
            yield line


def bounded_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines of a file, each cut at `MAX_BYTES`, with their whole length."""
    while line := file.readline(MAX_BYTES):
        length, end = len(line), line
        while len(end) == MAX_BYTES and not end.endswith(b"\n"):
            end = file.readline(MAX_BYTES)
            length += len(end)
        yield line, length


def parquet_rows(
    key: str, path: str, file: BinaryIO, column: str, rng: random.Random | None, start: int
) -> Iterator[tuple[int, str | bytes | Fault | None]]:
    """The values of a column, row group by row group; row groups before `start` are not read."""
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        if start == 0:
            yield 0, Fault("broken file", first_line(error))
        return
    if column not in parquet.schema_arrow.names:
        raise SourceFailed(f"{key}: '{path}' has no column '{column}'; its columns are {parquet.schema_arrow.names}")
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    order = list(range(len(sizes)))
    if rng:
        rng.shuffle(order)
    for group in order:
        if start < sizes[group]:
            yield from islice(group_rows(parquet, group, column, sum(sizes[:group]), sizes[group]), start, None)
        start = max(0, start - sizes[group])


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
