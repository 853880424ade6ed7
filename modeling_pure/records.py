"""Records of a Hub data set, or of local parquet and jsonl files: one recipe field names either."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from glob import escape, glob
from pathlib import Path, PurePath
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")
LOCAL_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
# Files beside the data in a data set's folder.
METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devset"), "validation"),
    **dict.fromkeys(("test", "tests", "testing", "testset", "eval", "evaluation", "heldout", "holdout"), "test"),
}
NOT_WORDS = ("of", "json", "jsonl", "ndjson", "parquet", "txt", "gz", "bz", "xz", "zst")  # train-0-of-9.json.gz


def local_files(path: str, suffixes: Iterable[str]) -> list[str]:
    """The files that a local `path` stands for, sorted.

    A path that exists is a file or a folder, whatever characters it has, and so is the part of a glob that exists. A
    folder stands for the files in it with one of the `suffixes`; if it has none, for those in the folders below it.
    """
    if os.path.isdir(path):
        found = [str(file) for file in files_below(path) if has_suffix(file, suffixes)]
        return [file for file in found if Path(file).parent == Path(path)] or found
    existing = existing_part(path)
    return sorted(glob(str(Path(escape(str(existing))) / Path(path).relative_to(existing)), recursive=True))


def files_below(folder: str) -> list[Path]:
    """All files in a folder and below it that are not hidden, sorted."""
    return sorted(
        file
        for file in Path(folder).rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and not file.is_dir()
    )


def has_suffix(file: Path, suffixes: Iterable[str]) -> bool:
    """Whether a file in a folder is data of one of these kinds."""
    return file.name.lower().endswith(tuple(suffixes)) and file.name not in METADATA_FILES


def existing_part(path: str) -> Path:
    """The longest beginning of a path that exists."""
    return next(part for part in (Path(path), *Path(path).parents) if os.path.exists(part))


def split_of(name: str) -> str | None:
    """The split that a path names: `train`, `validation`, `test`, or None.

    It is the first or last word of a folder or of the file: `c4-train.00000-of-00512.json.gz`, `test/a.jsonl`.
    """
    for part in PurePath(name).parts:
        words = [word for word in re.findall("[a-z]+", part.lower()) if word not in NOT_WORDS]
        for word in words[:1] + words[-1:]:
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def files_of_split(names: dict[str, str], split: str = "train") -> tuple[list[str], list[str]]:
    """The files of a split, and the others.

    Files that name no split belong to the train split. If no file is of the split, all are taken.

    Args:
        names: the files of one path, each with its path in the folder that they have in common.
    """
    splits = splits_of(names)
    of_split = {file for file in names if splits[file] == split} or set(names)
    return [file for file in names if file in of_split], [file for file in names if file not in of_split]


def splits_of(names: dict[str, str]) -> dict[str, str]:
    """The split of each file: of the word in which its name differs from another file's, or else of `split_of`.

    Beside `corpus_train_v2.jsonl`, and only there, `corpus_test_v2.jsonl` names a split.
    """
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for file, name in names.items():
        name = re.sub("[0-9]+", "0", name.lower())
        for word in re.finditer("[a-z]+", name):
            if word[0] in SPLIT_WORDS:
                alike[f"{name[: word.start()]}*{name[word.end() :]}"][file] = SPLIT_WORDS[word[0]]
    told = {file: split for splits in alike.values() if len({*splits.values()}) > 1 for file, split in splits.items()}
    return {file: told.get(file) or split_of(name) or "train" for file, name in names.items()}


def names_in(path: str, files: list[str]) -> dict[str, str]:
    """The files of a local path, each with its path in the folder."""
    folder = existing_part(path)
    return {file: os.path.relpath(file, folder) for file in files}


def looks_local(path: str, suffixes: Iterable[str]) -> bool:
    """Whether `path` can only be meant as local: it exists, has a data file's suffix, or starts like a path."""
    return bool(
        os.path.exists(path)
        or local_files(path, suffixes)
        or path.lower().endswith(tuple(suffixes))
        or path.startswith((".", "/", "~"))
    )


def require_files(key: str, path: str, files: list[str]) -> list[str]:
    """The local `files` of a `path`; `InputError` if there is none, or one is empty or a dead link."""
    if not files:
        raise InputError(f"{key}: no file matches '{path}'")
    for file in files:
        if not os.path.exists(file):
            raise InputError(f"{key}: '{file}' is a link to a file that is not there")
        if os.path.getsize(file) == 0:
            raise InputError(f"{key}: '{file}' is empty")
    return files


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


def ask_hub(key: str, path: str, call: Callable[[], T]) -> T:
    """Make a call about a Hub data set; `InputError` if it fails."""
    try:
        return ask_twice(call)
    except Exception as error:  # OSErrors, ValueErrors and whatever the HTTP library calls a lost connection
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])  # the second line lists the configurations if one is needed
        raise InputError(f"{key}: cannot open Hub data set '{path}': {reason}") from error


def ask_twice(call: Callable[[], T]) -> T:
    """Make a call, and repeat it if it raises `FileNotFoundError`, which a busy Hub may cause."""
    try:
        return call()
    except FileNotFoundError:
        return call()
