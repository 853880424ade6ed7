"""Records of Hub data sets and of local parquet and JSON files, streamed."""

from collections.abc import Iterable
from glob import escape
from pathlib import Path
from typing import Any

from .files import ask_hub

LOCAL_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def open_records(key: str, path: str, config: str | None = None, split: str = "train") -> Iterable[dict[str, Any]]:
    """Open a local file with one of the suffixes in `LOCAL_BUILDERS`, or else a Hub data set, as an `IterableDataset`.

    Args:
        key: the recipe key that `path` came from, for error messages.
        path: a local file, or a Hub id such as `allenai/c4`.
        config, split: of a Hub data set: the name of its configuration (`en` for C4), and the split.

    Raises:
        InputError: the Hub has no such data set, configuration or split.
    """
    from datasets import load_dataset

    if Path(path).is_file():
        builder = LOCAL_BUILDERS[Path(path).suffix.lower()]
        return load_dataset(builder, data_files=escape(path), split="train", streaming=True)
    return ask_hub(key, path, lambda: load_dataset(path, config, split=split, streaming=True))
