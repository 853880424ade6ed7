"""The files of a source, and the shards in which they are read."""

import io
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import fsspec
from rich.filesize import decimal

from ..compression import DECOMPRESSORS
from ..errors import InputError, first_line
from ..records import (
    METADATA_FILES,
    ask_hub,
    files_below,
    files_of_split,
    has_suffix,
    local_files,
    looks_local,
    names_in,
    require_files,
    splits_of,
)
from .remote import open_file

LINES = (".jsonl", ".json", ".ndjson")
DOCUMENTS = (".txt",)  # a file is one document
SUFFIXES = (".parquet", *DOCUMENTS, *LINES, *(line + compression for line in LINES for compression in DECOMPRESSORS))
SHARD_BYTES = 16 << 20
# How a file begins that is one array of objects, or one object over many lines.
ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|\]\s*$)")
ONE_OBJECT = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*\n\s*"')


@dataclass
class SourceFiles:
    """The files of a source, local paths or URLs, and the names of others on its paths, by why they are not taken."""

    taken: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    remark: str = ""

    def leave_out(self, reason: str, files: list[str]) -> None:
        """Record skipped files under the reason."""
        if files:
            self.left_out.setdefault(reason, []).extend(files)

    def describe(self) -> str:
        """Describe the files for the start-up block: how many, their size, and what was left out and why."""
        described = f"{len(self.taken):,} file{'s' * (len(self.taken) != 1)}"
        if all("://" not in file for file in self.taken):
            described += f", {decimal(sum(map(os.path.getsize, self.taken)))}"
        if self.taken and all(is_document(file) for file in self.taken):
            described += ", each one document"
        left_out = (f"; left out: {described_names(names)} ({why})" for why, names in self.left_out.items())
        return described + "".join(left_out) + self.remark


def described_names(files: list[str]) -> str:
    """A few names, or the number of files by their suffixes."""
    if len(files) <= 3:
        return ", ".join(PurePath(file).name for file in files)
    counts = Counter("".join(PurePath(file).suffixes[-2:]) or PurePath(file).name for file in files)
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common(3)) + ", ..." * (len(counts) > 3)


def lower_name(path: str) -> str:
    """A path or URL in lower case, without the URL's query: where its suffix is looked for."""
    return (path.split("?")[0] if "://" in path else path).lower()


def is_document(path: str) -> bool:
    """Whether a file is one document."""
    return lower_name(path).endswith(DOCUMENTS)


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
        """Where a record is, for a message."""
        return f"record {record} of '{self.path}'" + (f" counted from byte {self.begin}" if self.begin else "")


def find_files(
    key: str, paths: list[str], config: str | None = None, splits: tuple[str, ...] = ("train",)
) -> SourceFiles:
    """The files of a source, each once; `InputError` if there is none, or one cannot be streamed.

    Args:
        key: the recipe key that error messages name.
        paths: each a local file, glob or folder, a URL (a glob too, if its file system can list), or a Hub id.
        config: the Hub data set's configuration.
        splits: if there are several splits, the first of these that exists is taken.
    """
    found = SourceFiles()
    known: set[object] = set()
    for path in paths:
        for file in files_of_path(key, path, config, splits, found):
            if not lower_name(file).endswith(SUFFIXES):
                raise InputError(f"{key}: cannot stream '{file}'; expected one of {', '.join(SUFFIXES)}")
            if identity(file) in known:
                found.leave_out("taken already, by another path", [file])
            else:
                found.taken.append(file)
                known.add(identity(file))
    return found


def identity(file: str) -> object:
    """What all paths and links to one file have in common; on the Hub, all its revisions."""
    local = file.removeprefix("file://")
    if "://" in local:
        return re.sub(r"^(hf://datasets/[^/]+/[^/@]+)@[^/]+", r"\1", local)
    try:
        facts = os.stat(local)
    except OSError:
        return os.path.realpath(local)
    return facts.st_dev, facts.st_ino


def files_of_path(key: str, path: str, config: str | None, splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The files that one path of a source stands for; others that it holds are noted in `found`."""
    if "://" in path:
        return files_of_url(key, path, splits, found)
    if looks_local(path, SUFFIXES):
        return files_of_local_path(key, str(Path(path).expanduser()), splits, found)
    return hub_files(key, path, config, splits, found)


def files_of_url(key: str, path: str, splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The file at a URL, or those that a URL with a glob matches."""
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        if "*" not in path or (path.startswith("file://") and os.path.exists(inner)):
            return [path]
        files = [filesystem.unstrip_protocol(file) for file in sorted(filesystem.glob(inner))]
    except Exception as error:  # of any file system's library
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
        found.leave_out("not of a kind that is read", unread)
        found.leave_out("in folders below; name them in path to take them", readable)
    elif len(files) > 1:
        found.leave_out("not of a kind that is read", [file for file in files if Path(file).name in METADATA_FILES])
        files = [file for file in files if Path(file).name not in METADATA_FILES]
    return require_files(key, path, named_files(names_in(path, files), splits, found))


def named_files(names: dict[str, str], splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """Of a path's files those of the first split that exists, if names tell splits apart."""
    present = {*splits_of(names).values()}
    split = next((split for split in splits if split in present), splits[-1])
    taken, others = files_of_split(names, split)
    found.leave_out(f"not of the {split} split, by their names", others)
    return taken


def hub_files(key: str, path: str, config: str | None, splits: tuple[str, ...], found: SourceFiles) -> list[str]:
    """The files of a split of a Hub data set, as `datasets` finds them, pinned to the newest commit."""
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
