"""Records of a Hub data set, or of local parquet and jsonl files: one recipe field names either."""

from collections.abc import Iterable
from glob import escape
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import ask_hub, files_of_split, local_files, looks_local, names_in, require_files

LOCAL_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def open_records(key: str, path: str, config: str | None = None, split: str = "train") -> Iterable[dict[str, Any]]:
    """Open a Hub data set or local files, streaming.

    Args:
        key: the recipe key that `path` came from; error messages name it.
        path: a Hub id such as `allenai/c4`, or a local file, glob or folder of `.parquet`, `.jsonl`, `.json`.
            If names of the files tell splits apart, those of `split` are read.
        config: the Hub data set's configuration name (`en` for C4); unused for local files.
        split: the split; local files that name no split are train.

    Returns:
        `datasets.IterableDataset`

    Raises:
        InputError: no such file, an unknown kind of file, or the Hub has no such data set.
    """
    from datasets import load_dataset

    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if looks_local(path, LOCAL_BUILDERS):
        files, _ = files_of_split(names_in(path, local_files(path, LOCAL_BUILDERS)), split)
        require_files(key, path, files)
        suffixes = {Path(file).suffix.lower() for file in files}
        builders = {LOCAL_BUILDERS.get(suffix) for suffix in suffixes}
        if len(builders) != 1 or None in builders:
            raise InputError(f"{key}: '{path}' holds {sorted(suffixes)}; expected one of {sorted(LOCAL_BUILDERS)}")
        return load_dataset(builders.pop(), data_files=[escape(file) for file in files], split="train", streaming=True)
    return ask_hub(key, path, lambda: load_dataset(path, config, split=split, streaming=True))
