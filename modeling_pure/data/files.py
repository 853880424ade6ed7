"""The files of a source, and the pieces in which they are read."""

import io
from dataclasses import dataclass
from pathlib import Path

import fsspec

from ..errors import InputError, first_line
from ..rows import hub_errors, local_files, looks_local, require_files
from .remote import open_file

LINES = (".jsonl", ".json")
DOCUMENTS = (".txt",)  # a file is one document
COMPRESSIONS = (".gz", ".bz2", ".xz")
SUFFIXES = (".parquet", *DOCUMENTS, *LINES, *(line + compression for line in LINES for compression in COMPRESSIONS))
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Piece:
    """What is opened and shared out as one: a file, or a range of bytes of an uncompressed file of lines.

    A line belongs to the range that its first byte lies in.
    """

    path: str
    begin: int = 0
    end: int | None = None

    def locate(self, row: int) -> str:
        """Where row number `row` of this piece is, for a message."""
        return f"row {row} of '{self.path}'" + (f" counted from byte {self.begin}" if self.begin else "")


def find_files(key: str, paths: list[str], config: str | None = None) -> list[str]:
    """The files of a source, sorted within each path: local paths, or URLs that fsspec opens.

    Args:
        key: the recipe key that error messages name.
        paths: each a local file, glob or folder, a URL (a glob too, where its file system can list), or a Hub id.
        config: the Hub data set's configuration.

    Raises:
        InputError: no such file or data set, or none of a kind that can be streamed.
    """
    files = [file for path in paths for file in files_of_path(key, path, config)]
    for file in files:
        if not file.split("?")[0].endswith(SUFFIXES):
            raise InputError(f"{key}: cannot stream '{file}'; expected one of {', '.join(SUFFIXES)}")
    return files


def files_of_path(key: str, path: str, config: str | None) -> list[str]:
    """The files that one path of a source stands for."""
    if "://" in path:
        try:
            filesystem, inner = fsspec.core.url_to_fs(path)
            if "*" not in path:
                return [path]
            files = [filesystem.unstrip_protocol(file) for file in sorted(filesystem.glob(inner))]
        except Exception as error:  # of any file system's library
            raise InputError(f"{key}: cannot list '{path}': {first_line(error)}") from error
        if not files:
            raise InputError(f"{key}: no file matches '{path}'")
        return files
    if looks_local(path, SUFFIXES):
        path = str(Path(path).expanduser())
        return require_files(key, path, local_files(path, SUFFIXES))
    return hub_files(key, path, config)


def hub_files(key: str, path: str, config: str | None) -> list[str]:
    """The files of a Hub data set's train split, as `datasets` finds them, pinned to the newest commit."""
    from datasets import load_dataset_builder

    with hub_errors(key, path):
        builder = load_dataset_builder(path, config)
        splits = builder.config.data_files
        if "train" not in splits:
            raise ValueError(f"it has no train split, only {sorted(splits)}")
        return [str(file) for file in splits["train"]]


def split_files(key: str, files: list[str], timeout: float = 300.0, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The pieces of a source.

    Uncompressed lines are cut into ranges, so that one large file is neither read by every reader nor read from its
    beginning by a run that goes on in its middle; parquet can do both within the file.

    Raises:
        SourceFailed: the size of a file cannot be found out.
    """
    pieces = []
    for file in files:
        if file.endswith(LINES):
            with open_file(key, file, timeout) as opened:
                size = opened.seek(0, io.SEEK_END)
            pieces += [Piece(file, begin, min(begin + piece_bytes, size)) for begin in range(0, size, piece_bytes)]
        else:
            pieces.append(Piece(file))
    return pieces
