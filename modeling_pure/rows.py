"""Rows of a Hub data set, or of local parquet and jsonl files, named in one and the same field."""

from collections.abc import Iterable
from glob import glob
from pathlib import Path

from .errors import InputError, first_line

LOCAL_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def local_files(path: str) -> list[str]:
    """The files that a local `path` (a file, a glob or a folder) stands for; empty where it looks like a Hub id."""
    if Path(path).is_dir():
        return sorted(str(file) for file in Path(path).iterdir() if file.suffix in LOCAL_BUILDERS)
    return sorted(glob(path))


def looks_local(path: str) -> bool:
    """Whether `path` can only be meant as local: it exists, has a data file's suffix, or starts like a path."""
    return bool(
        Path(path).exists() or glob(path) or Path(path).suffix in LOCAL_BUILDERS or path.startswith((".", "/", "~"))
    )


def open_rows(key: str, path: str, config: str | None = None, split: str = "train", streaming: bool = True):
    """Open a Hub data set or local files.

    Args:
        key: the recipe key that `path` came from; error messages name it.
        path: a Hub id such as `allenai/c4`, or a local file, glob or folder of `.parquet`, `.jsonl`, `.json`.
        config: the Hub data set's configuration name (`en` for C4); unused for local files.
        split: the Hub data set's split; local files are one split.

    Returns:
        `datasets.IterableDataset` when streaming, else `datasets.Dataset`.

    Raises:
        InputError: no such file, an unknown kind of file, or the Hub has no such data set.
    """
    from datasets import load_dataset

    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if looks_local(path):
        files = local_files(path)
        if not files:
            raise InputError(f"{key}: no file matches '{path}'")
        suffixes = {Path(file).suffix for file in files}
        builders = {LOCAL_BUILDERS.get(suffix) for suffix in suffixes}
        if len(builders) != 1 or None in builders:
            raise InputError(f"{key}: '{path}' holds {sorted(suffixes)}; expected one of {sorted(LOCAL_BUILDERS)}")
        empty = [file for file in files if Path(file).stat().st_size == 0]
        if empty:
            raise InputError(f"{key}: '{empty[0]}' is empty")
        return load_dataset(builders.pop(), data_files=files, split="train", streaming=streaming)
    try:
        return load_dataset(path, config, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        # DatasetNotFoundError is a FileNotFoundError; a wrong config or split is a ValueError.
        raise InputError(f"{key}: cannot open Hub data set '{path}': {first_line(error)}") from error


def require_columns(key: str, path: str, row: dict, columns: Iterable[str]) -> None:
    """Raise `InputError` unless `row` has every one of `columns`."""
    missing = [column for column in columns if column not in row]
    if missing:
        raise InputError(f"{key}: '{path}' has no column '{missing[0]}'; its columns are {sorted(row)}")
