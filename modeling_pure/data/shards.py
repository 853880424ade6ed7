"""Cut the files of a source into shards."""

import io
import os
import re
from dataclasses import dataclass

from ..errors import InputError
from ..files import LINES, lower_name
from .remote import open_file

SHARD_BYTES = 16 << 20
# The beginning of a file that holds one array of objects, or one object over many lines.
ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|\]\s*$)")
ONE_OBJECT = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*\n\s*"')


@dataclass(frozen=True)
class Shard:
    """A file, or a byte range of an uncompressed file of lines.

    A line belongs to the range that contains its first byte.
    """

    path: str
    begin: int = 0
    end: int | None = None

    @property
    def size(self) -> int | None:
        """Size in bytes; None for a remote file."""
        if self.end is not None:
            return self.end - self.begin
        return None if "://" in self.path else os.path.getsize(self.path)

    def locate(self, record: int) -> str:
        """Describe the location of a record for error messages."""
        return f"record {record} of '{self.path}'" + (f" counted from byte {self.begin}" if self.begin else "")


def split_files(key: str, files: list[str], timeout: float = 300.0, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Cut the files of a source into shards.

    Large files of uncompressed lines become byte ranges: workers then read different parts, and a run that resumes in
    the middle does not read the file from its beginning. Parquet files allow both without being cut.

    Raises:
        InputError: a file is one JSON object over many lines.
        SourceFailed: a file cannot be opened.
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
                f"{key}: '{file}' is one JSON object over many lines, not one object per line; jq -c . writes it as "
                f"one line, and jq -c '.NAME[]' writes a list in it as lines"
            )
        if ARRAY.match(head):
            shards.append(Shard(file))
        else:
            shards += [Shard(file, begin, min(begin + shard_bytes, size)) for begin in range(0, size, shard_bytes)]
    return shards
