"""The shards in which a source's files are read."""

import io
import os
import re
from dataclasses import dataclass

from ..errors import InputError
from ..files import LINES, lower_name
from .remote import open_file

SHARD_BYTES = 16 << 20
# How a file begins that is one array of objects, or one object over many lines.
ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|\]\s*$)")
ONE_OBJECT = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*\n\s*"')


@dataclass(frozen=True)
class Shard:
    """What is opened by one worker at a time: a file, or a range of bytes of an uncompressed file of lines.

    A line belongs to the range that its first byte lies in.
    """

    path: str
    begin: int = 0
    end: int | None = None

    @property
    def size(self) -> int | None:
        """Bytes; None if only a server knows."""
        if self.end is not None:
            return self.end - self.begin
        return None if "://" in self.path else os.path.getsize(self.path)

    def locate(self, record: int) -> str:
        """The location of a record, as error messages name it."""
        return f"record {record} of '{self.path}'" + (f" counted from byte {self.begin}" if self.begin else "")


def split_files(key: str, files: list[str], timeout: float = 300.0, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The shards of a source.

    Uncompressed lines are cut into ranges, so that one large file is neither read by every worker nor read from its
    beginning by a run that resumes in its middle; parquet can do both within the file.

    Raises:
        InputError: a file is one JSON object over many lines.
        SourceFailed: the size of a file cannot be found out.
    """
    shards: list[Shard] = []
    for file in files:
        if not lower_name(file).endswith(LINES):
            shards.append(Shard(file))
            continue
        with open_file(key, file, timeout) as opened:
            size = opened.seek(0, io.SEEK_END)
            opened.seek(0)
            head = opened.read(4096)
        if ONE_OBJECT.match(head):
            raise InputError(
                f"{key}: '{file}' is one JSON object over many lines, not one object a line; "
                f"jq -c . writes it on one line, and jq -c '.NAME[]' a list in it as lines"
            )
        if ARRAY.match(head):
            shards.append(Shard(file))
        else:
            shards += [Shard(file, begin, min(begin + shard_bytes, size)) for begin in range(0, size, shard_bytes)]
    return shards
