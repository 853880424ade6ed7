"""Decompress files, by suffix or by their first bytes."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

ZSTD_BYTES = 1 << 16  # read buffer; of a truncated file, up to this many bytes before its end are lost


def open_zstd(file: BinaryIO) -> io.BufferedReader:
    """Open a zstd file of one or more frames; reading raises `OSError` if it is truncated or damaged."""
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), ZSTD_BYTES)


# Each opens a stream over an open file, and does not close that file.
DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": open_zstd,
}
FIRST_BYTES = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
DECOMPRESSION_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)


def decompress(content: bytes) -> bytes:
    """Decompress content according to its first bytes; other content is returned unchanged.

    Raises:
        DECOMPRESSION_ERRORS: the content is truncated or damaged.
    """
    suffix = next((suffix for start, suffix in FIRST_BYTES.items() if content.startswith(start)), None)
    if suffix is None:
        return content
    plain: bytes = DECOMPRESSORS[suffix](io.BytesIO(content)).read()
    return plain
