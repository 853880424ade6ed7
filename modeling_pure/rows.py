"""Rows of a Hub data set, or of local parquet and jsonl files, named in one and the same field."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

from .errors import InputError

LOCAL_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def local_files(path: str, suffixes: Iterable[str]) -> list[str]:
    """The files that a local `path` (a file, a glob or a folder) stands for; of a folder, those with a suffix."""
    if Path(path).is_dir():
        return sorted(str(file) for file in Path(path).iterdir() if file.name.lower().endswith(tuple(suffixes)))
    return sorted(glob(path, recursive=True))


def looks_local(path: str, suffixes: Iterable[str]) -> bool:
    """Whether `path` can only be meant as local: it exists, has a data file's suffix, or starts like a path."""
    return bool(
        Path(path).exists() or glob(path) or path.lower().endswith(tuple(suffixes)) or path.startswith((".", "/", "~"))
    )


def require_files(key: str, path: str, files: list[str]) -> list[str]:
    """The local `files` of a `path`; `InputError` where there is none or an empty one."""
    if not files:
        raise InputError(f"{key}: no file matches '{path}'")
    for file in files:
        if Path(file).stat().st_size == 0:
            raise InputError(f"{key}: '{file}' is empty")
    return files


def open_rows(key: str, path: str, config: str | None = None, split: str = "train") -> Iterable[dict[str, Any]]:
    """Open a Hub data set or local files, streaming.

    Args:
        key: the recipe key that `path` came from; error messages name it.
        path: a Hub id such as `allenai/c4`, or a local file, glob or folder of `.parquet`, `.jsonl`, `.json`.
        config: the Hub data set's configuration name (`en` for C4); unused for local files.
        split: the Hub data set's split; local files are one split.

    Returns:
        `datasets.IterableDataset`

    Raises:
        InputError: no such file, an unknown kind of file, or the Hub has no such data set.
    """
    from datasets import load_dataset

    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if looks_local(path, LOCAL_BUILDERS):
        files = require_files(key, path, local_files(path, LOCAL_BUILDERS))
        suffixes = {Path(file).suffix.lower() for file in files}
        builders = {LOCAL_BUILDERS.get(suffix) for suffix in suffixes}
        if len(builders) != 1 or None in builders:
            raise InputError(f"{key}: '{path}' holds {sorted(suffixes)}; expected one of {sorted(LOCAL_BUILDERS)}")
        return load_dataset(builders.pop(), data_files=files, split="train", streaming=True)
    with hub_errors(key, path):
        return load_dataset(path, config, split=split, streaming=True)


@contextmanager
def hub_errors(key: str, path: str) -> Iterator[None]:
    """Turns what `datasets` raises about a Hub data set into an `InputError`."""
    try:
        yield
    except Exception as error:  # OSErrors, ValueErrors and whatever the HTTP library calls a lost connection
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])  # the second line lists the configurations where none was given
        raise InputError(f"{key}: cannot open Hub data set '{path}': {reason}") from error
