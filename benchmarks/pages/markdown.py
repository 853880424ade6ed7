"""Numbers and tables as the pages show them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def read(file: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(file.read_text())


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def percent(share: float) -> str:
    """`64.7 %`."""
    return f"{100 * share:.1f} %"


def interval(share: float, bounds: Sequence[float]) -> str:
    """`64.7 % (60.6 to 68.6)`."""
    return f"{percent(share)} ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"


def made_by(result: dict) -> str:
    """Machine, versions and command, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    cuda = f", CUDA {result['cuda']}" if result.get("cuda") else ""
    commit = f", commit `{result['git'][:12]}`" if result.get("git") else ""
    return f"{result['device']}{cuda}, {versions}{commit}; `{result['command']}`"
