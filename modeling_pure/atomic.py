"""Files that are whole or not there."""

import os
from pathlib import Path


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write under another name and rename: whoever is interrupted here leaves the former file as it was."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(unfinished, file)
