"""The records of a file of lines or of one JSON array, whole or a range of bytes, plain or compressed."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from ..compression import DECOMPRESSORS
from ..errors import first_line
from .files import ARRAY, Shard, lower_name

MAX_CHARACTERS = 10_000_000  # of one document: over 2M tokens, longer than any book
MAX_BYTES = 4 * MAX_CHARACTERS + 1000  # of a line or a .txt file: no more is read of one before it is given up
BETWEEN_OBJECTS = re.compile(r"[\s,\[\]]*")
CHUNK = 1 << 20


def decompressed(file: BinaryIO, path: str) -> Any:
    """Return a stream of the file's bytes, decompressed according to its suffix."""
    decompress = DECOMPRESSORS.get(PurePath(lower_name(path)).suffix)
    return decompress(file) if decompress else file


def records_of(file: BinaryIO, shard: Shard) -> Iterator[tuple[bytes | dict[str, Any], int]]:
    """The records of a shard with their sizes in bytes: lines that are not blank, or the objects of an array.

    Raises:
        DECOMPRESSION_ERRORS: a compressed file breaks off or is damaged.
        ValueError: an array does.
    """
    stream = decompressed(file, shard.path)
    if shard.end is None and shard.begin == 0 and ARRAY.match(stream.peek(4096)[:4096]):
        yield from array_objects(stream)
    elif stream is file:
        yield from lines_of_range(stream, shard)
    else:
        yield from ((line, length) for line, length in bounded_lines(stream) if line.strip())


def array_objects(stream: BinaryIO) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a JSON array, one after another: neither the file nor the array is held in memory.

    Raises:
        ValueError: the array breaks off or is damaged, or holds an object of more than `MAX_BYTES`.
    """
    decoder = json.JSONDecoder()
    # A byte that is no UTF-8 then costs the one text that it is in.
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
    """The lines whose first byte lies in the shard, with their lengths."""
    position = shard.begin
    if position:  # the line that the byte before the shard belongs to is the other shard's
        file.seek(position - 1)
        position += len(file.readline()) - 1
    for line, length in bounded_lines(file):
        if shard.end is not None and position >= shard.end:
            return
        position += length
        if line.strip():
            yield line, length


def bounded_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines of a file, each cut at `MAX_BYTES`, with their whole length."""
    while line := file.readline(MAX_BYTES):
        length, end = len(line), line
        while len(end) == MAX_BYTES and not end.endswith(b"\n"):
            end = file.readline(MAX_BYTES)
            length += len(end)
        yield line, length
