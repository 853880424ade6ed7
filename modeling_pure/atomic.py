"""Atomic files: complete, or absent."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write under another name and rename, so that an interruption leaves the former file as it was."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(unfinished, file)


def follow_umask(files: Iterable[Path]) -> None:
    """Give files the permissions of any new file: safetensors makes its own readable by the owner only."""
    for file in files:
        probe = file.with_name(file.name + ".unfinished")
        probe.touch()  # the umask itself cannot be read without changing it for other threads
        file.chmod(probe.stat().st_mode & 0o777)
        probe.unlink()
