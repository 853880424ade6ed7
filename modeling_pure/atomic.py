"""Atomic writes, and permissions of new files."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write under another name, then rename: an interruption leaves the previous file unchanged."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(unfinished, file)


def follow_umask(files: Iterable[Path]) -> None:
    """Give files the permissions of any new file: safetensors creates files that only the owner can read."""
    for file in files:
        probe = file.with_name(file.name + ".unfinished")
        probe.touch()  # reading the umask itself would change it for other threads
        file.chmod(probe.stat().st_mode & 0o777)
        probe.unlink()
