"""Find the files of a path: local, at a URL, or in a Hub data set."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from glob import escape, glob
from pathlib import Path, PurePath
from typing import TypeVar

import fsspec
from rich.filesize import decimal

from .compression import DECOMPRESSORS
from .errors import InputError, first_line

T = TypeVar("T")
LINES = (".jsonl", ".json", ".ndjson")
DOCUMENTS = (".txt",)  # a file is one document
SUFFIXES = (".parquet", *DOCUMENTS, *LINES, *(line + compression for line in LINES for compression in DECOMPRESSORS))
# Files in the folder of a data set that are not data.
METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devset"), "validation"),
    **dict.fromkeys(("test", "tests", "testing", "testset", "eval", "evaluation", "heldout", "holdout"), "test"),
}
NOT_WORDS = ("of", "json", "jsonl", "ndjson", "parquet", "txt", "gz", "bz", "xz", "zst")  # train-0-of-9.json.gz


@dataclass
class SourceFiles:
    """The files of a source, as local paths or URLs, and the files on its paths that were left out, by reason."""

    taken: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    remark: str = ""

    def leave_out(self, reason: str, files: list[str]) -> None:
        """Add files that were left out for a reason."""
        if files:
            self.left_out.setdefault(reason, []).extend(files)

    def describe(self) -> str:
        """Describe the files for the start-up block: their number and size, what was left out, and why."""
        described = f"{len(self.taken):,} file{'s' * (len(self.taken) != 1)}"
        if all("://" not in file for file in self.taken):
            described += f", {decimal(sum(map(os.path.getsize, self.taken)))}"
        if self.taken and all(is_document(file) for file in self.taken):
            described += ", each one document"
        left_out = (f"; left out: {described_names(names)} ({why})" for why, names in self.left_out.items())
        return described + "".join(left_out) + self.remark


def described_names(files: list[str]) -> str:
    """The names of up to three files; of more, their number by suffix."""
    if len(files) <= 3:
        return ", ".join(PurePath(file).name for file in files)
    counts = Counter("".join(PurePath(file).suffixes[-2:]) or PurePath(file).name for file in files)
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common(3)) + ", ..." * (len(counts) > 3)


def lower_name(path: str) -> str:
    """A path or URL in lower case and without the URL's query, to look up its suffix."""
    return (path.split("?")[0] if "://" in path else path).lower()


def is_document(path: str) -> bool:
    """Whether a file is one document."""
    return lower_name(path).endswith(DOCUMENTS)


def find_files(
    key: str, paths: list[str], config: str | None = None, splits: tuple[str, ...] = ("train",)
) -> SourceFiles:
    """Find the files of a source, each once.

    Args:
        key: the recipe key, for error messages.
        paths: local files, globs or folders, URLs (globs too, if their file system can list files), or Hub ids.
        config: the configuration of a Hub data set.
        splits: the splits to look for; the first that exists is taken.

    Raises:
        InputError: there is no file, or one of a kind that cannot be streamed.
    """
    found = SourceFiles()
    known: set[object] = set()
    for path in paths:
        for file in files_of_path(key, path, config, splits, found):
            if not lower_name(file).endswith(SUFFIXES):
                raise InputError(f"{key}: cannot stream '{file}'; expected one of {', '.join(SUFFIXES)}")
            if identity(file) in known:
                found.leave_out("already taken through another path", [file])
            else:
                found.taken.append(file)
                known.add(identity(file))
    return found


def identity(file: str) -> object:
    """A key that is the same for all paths and links to one file, or for all revisions of a Hub file."""
    local = file.removeprefix("file://")
    if "://" in local:
        return re.sub(r"^(hf://datasets/[^/]+/[^/@]+)@[^/]+", r"\1", local)
    try:
        facts = os.stat(local)
    except OSError:
        return os.path.realpath(local)
    return facts.st_dev, facts.st_ino


def files_of_path(key: str, path: str, config: str | None, splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The files of one path of a source; files that are left out are added to `found`."""
    if "://" in path:
        return files_of_url(key, path, splits, found)
    if looks_local(path, SUFFIXES):
        return files_of_local_path(key, str(Path(path).expanduser()), splits, found)
    return hub_files(key, path, config, splits, found)


def files_of_url(key: str, path: str, splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The file at a URL, or the files that match a URL with a glob."""
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        if "*" not in path or (path.startswith("file://") and os.path.exists(inner)):
            return [path]
        files = [filesystem.unstrip_protocol(file) for file in sorted(filesystem.glob(inner))]
    except Exception as error:  # each file system's library has its own errors
        raise InputError(f"{key}: cannot list '{path}': {first_line(error)}") from error
    if not files:
        raise InputError(f"{key}: no file matches '{path}'")
    folder = inner.split("*")[0].rpartition("/")[0]
    return named_files({file: file.rpartition(folder + "/")[2] for file in files}, splits, found)


def files_of_local_path(key: str, path: str, splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The files of a local path."""
    files = local_files(path, SUFFIXES)
    if os.path.isdir(path):
        others = [file for file in files_below(path) if str(file) not in set(files)]
        readable = [str(file) for file in others if has_suffix(file, SUFFIXES)]
        unread = [str(file) for file in others if str(file) not in set(readable)]
        if not files:
            there = f"it holds {described_names(unread)}" if unread else "it is empty"
            raise InputError(f"{key}: no file in '{path}' can be read: {there}; expected one of {', '.join(SUFFIXES)}")
        found.leave_out("unsupported kind of file", unread)
        found.leave_out("in subfolders; add them to path to include them", readable)
    elif len(files) > 1:
        found.leave_out("unsupported kind of file", [file for file in files if Path(file).name in METADATA_FILES])
        files = [file for file in files if Path(file).name not in METADATA_FILES]
    return require_files(key, path, named_files(names_in(path, files), splits, found))


def named_files(names: dict[str, str], splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The files of the first split that exists, if the names tell splits apart."""
    taken, others = files_of_split(names, *splits)
    found.leave_out("another split, by name", others)
    return taken


def hub_files(key: str, path: str, config: str | None, splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The files of a split of a Hub data set, as `datasets` finds them, pinned to the latest commit."""
    from datasets import load_dataset_builder

    files = ask_hub(key, path, lambda: load_dataset_builder(path, config)).config.data_files
    taken = next((split for split in splits if split in files), None)
    if taken is None:
        raise InputError(
            f"{key}: cannot open Hub data set '{path}': it has no {splits[-1]} split, only {sorted(files)}"
        )
    for split in files:
        if split != taken:
            found.leave_out(f"split {split}", [str(file) for file in files[split]])
    return [str(file) for file in files[taken]]


def ask_hub(key: str, path: str, call: Callable[[], T]) -> T:
    """Make a call about a Hub data set; raises `InputError` if it fails."""
    try:
        return ask_twice(call)
    except Exception as error:  # OSError, ValueError, and the HTTP library's own errors for a lost connection
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])  # the second line lists the configurations if one has to be chosen
        raise InputError(f"{key}: cannot open Hub data set '{path}': {reason}") from error


def ask_twice(call: Callable[[], T]) -> T:
    """Make a call, and retry it once after `FileNotFoundError`, which a busy Hub may cause."""
    try:
        return call()
    except FileNotFoundError:
        return call()


# ---- local files, and splits by name --------------------------------------------------------------------------------


def local_files(path: str, suffixes: Iterable[str]) -> list[str]:
    """The files of a local file, glob or folder, sorted.

    A path that exists is not a glob, whatever characters it contains; neither is the leading part of a path that
    exists. Of a folder, the files with one of the `suffixes` are taken; if it has none, those in its subfolders.
    """
    if os.path.isdir(path):
        found = [str(file) for file in files_below(path) if has_suffix(file, suffixes)]
        return [file for file in found if Path(file).parent == Path(path)] or found
    existing = existing_part(path)
    return sorted(glob(str(Path(escape(str(existing))) / Path(path).relative_to(existing)), recursive=True))


def files_below(folder: str) -> list[Path]:
    """All files in a folder and its subfolders that are not hidden, sorted."""
    return sorted(
        file
        for file in Path(folder).rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and not file.is_dir()
    )


def has_suffix(file: Path, suffixes: Iterable[str]) -> bool:
    """Whether a file has one of the suffixes and is not metadata."""
    return file.name.lower().endswith(tuple(suffixes)) and file.name not in METADATA_FILES


def existing_part(path: str) -> Path:
    """The longest leading part of a path that exists."""
    return next(part for part in (Path(path), *Path(path).parents) if os.path.exists(part))


def split_of(name: str) -> str | None:
    """The split that a path names (`train`, `validation` or `test`), or None.

    The name of a split is the first or last word of a folder or file: `c4-train.00000-of-00512.json.gz`,
    `test/a.jsonl`.
    """
    for part in PurePath(name).parts:
        words = [word for word in re.findall("[a-z]+", part.lower()) if word not in NOT_WORDS]
        for word in words[:1] + words[-1:]:
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def files_of_split(names: dict[str, str], *splits: str) -> tuple[list[str], list[str]]:
    """The files of the first of the `splits` that exists, and the other files.

    Files that name no split belong to the train split. If none of the splits exists, all files are taken.

    Args:
        names: the files of one path, each with its path relative to their common folder.
    """
    split_by_file = splits_of(names)
    split = next((split for split in splits if split in split_by_file.values()), None)
    taken = [file for file in names if split in (None, split_by_file[file])]
    others = [file for file in names if split not in (None, split_by_file[file])]
    return taken, others


def splits_of(names: dict[str, str]) -> dict[str, str]:
    """The split of each file: by the one word in which its name differs from another's, or else by `split_of`.

    `corpus_test_v2.jsonl` names a split only if there is a `corpus_train_v2.jsonl`, too.
    """
    by_pattern: dict[str, dict[str, str]] = defaultdict(dict)
    for file, name in names.items():
        name = re.sub("[0-9]+", "0", name.lower())
        for word in re.finditer("[a-z]+", name):
            if word[0] in SPLIT_WORDS:
                by_pattern[f"{name[: word.start()]}*{name[word.end() :]}"][file] = SPLIT_WORDS[word[0]]
    groups = (splits for splits in by_pattern.values() if len({*splits.values()}) > 1)
    found = {file: split for splits in groups for file, split in splits.items()}
    return {file: found.get(file) or split_of(name) or "train" for file, name in names.items()}


def names_in(path: str, files: list[str]) -> dict[str, str]:
    """The files of a local path, each with its path relative to the folder."""
    folder = existing_part(path)
    return {file: os.path.relpath(file, folder) for file in files}


def looks_local(path: str, suffixes: Iterable[str]) -> bool:
    """Whether `path` must be local: it exists, ends like a data file, or starts with `.`, `/` or `~`."""
    return bool(
        os.path.exists(path)
        or local_files(path, suffixes)
        or path.lower().endswith(tuple(suffixes))
        or path.startswith((".", "/", "~"))
    )


def require_files(key: str, path: str, files: list[str]) -> list[str]:
    """Return the local `files` of a `path`; raises `InputError` if there is none, or one is empty or a dead link."""
    if not files:
        raise InputError(f"{key}: no file matches '{path}'")
    for file in files:
        if not os.path.exists(file):
            raise InputError(f"{key}: '{file}' is a link to a file that does not exist")
        if os.path.getsize(file) == 0:
            raise InputError(f"{key}: '{file}' is empty")
    return files
