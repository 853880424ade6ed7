"""Compressed files, by suffix or by their first bytes."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

ZSTD_BYTES = 1 << 16  # so much of a file that breaks off is lost with its end


def open_zstd(file: BinaryIO) -> io.BufferedReader:
    """A zstd file as bytes, frame after frame; OSError if it breaks off or is damaged."""
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), ZSTD_BYTES)


# Each gives the bytes of an open file, which it leaves open.
DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": open_zstd,
}
FIRST_BYTES = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
DECOMPRESSION_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)


def decompress(content: bytes) -> bytes:
    """Decompress content according to its first bytes; other content is returned as it is.

    Raises:
        DECOMPRESSION_ERRORS: the content breaks off or is damaged.
    """
    suffix = next((suffix for start, suffix in FIRST_BYTES.items() if content.startswith(start)), None)
    if suffix is None:
        return content
    plain: bytes = DECOMPRESSORS[suffix](io.BytesIO(content)).read()
    return plain
