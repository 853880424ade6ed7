"""Rows that were packed once (`pack`), read with the same exactness: any number of ranks and workers, any position.

A folder holds the rows of the mixture in their order, so that a position in it is one number. Batches are stretches of
that order, dealt out to the ranks in turn: a run that goes on with other ranks or workers sees exactly what follows.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, RunStopped, first_line
from .arguments import DataArguments
from .sources import Source
from .states import MixtureState, PretokenizedState, Progress, RankState, TokenSequence, TrainingData

FACTS_FILE = "pretokenized.json"
VALIDATION_FILE = "validation.arrow"
STATE_KEY = b"pure_state"


class PretokenizedFacts(TypedDict):
    """The content of `pretokenized.json`: the settings that the rows depend on, by recipe key, and rows per file."""

    settings: dict[str, Any]
    sequences_per_file: int


def settings(
    sources: list[Source], tokenizer: PreTrainedTokenizerBase, arguments: DataArguments, seed: int
) -> dict[str, Any]:
    """What the rows depend on, by recipe key."""
    return {
        # A list, for their order matters too.
        "sources": [{**asdict(source), "weight": str(source.weight)} for source in sources],
        "tokenizer_name_or_path": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "max_seq_length": arguments.max_seq_length,
        "grpo_holdout": arguments.grpo_holdout,
        "decontaminate": arguments.decontaminate or [],
        "validation_sources": arguments.validation_sources or {},
        "seed": seed,
    }


def sequences_file(folder: Path, number: int) -> Path:
    """The name of one file of rows."""
    return folder / f"sequences-{number:05d}.arrow"


def read_facts(folder: str | Path, expected: dict[str, Any]) -> PretokenizedFacts:
    """What a folder of packed rows says about itself.

    Raises:
        InputError: it holds no packed rows, or rows that were made with other settings than `expected`.
    """
    path = Path(folder) / FACTS_FILE
    try:
        facts: PretokenizedFacts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"pretokenized_dir: '{folder}' holds no packed rows: {first_line(error)}") from error
    for key, value in expected.items():
        if facts["settings"].get(key) != value:
            raise InputError(
                f"pretokenized_dir: '{folder}' has another {key} ({facts['settings'].get(key)}, not {value})"
            )
    return facts


class PretokenizedMixture(TrainingData[PretokenizedState]):
    """The rows of a packed folder for one rank, each batch of a rank following that of the rank before.

    Args:
        sources, tokenizer, arguments, seed: as of the run; the folder must have been packed with the same.
        batch_size: rows of a rank's batch.
        rank, world_size: this process among all that train.

    Raises:
        InputError: the folder was not packed, or with other settings.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: PreTrainedTokenizerBase,
        arguments: DataArguments,
        seed: int = 0,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not arguments.pretokenized_dir:
            raise InputError("pretokenized_dir: expected a folder of packed rows")
        self.folder = Path(arguments.pretokenized_dir)
        self.facts = read_facts(self.folder, settings(sources, tokenizer, arguments, seed))
        self.sources, self.tokenizer = sources, tokenizer
        self.names = [source.name for source in sources]
        self.sequence_length = arguments.max_seq_length
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.sequences_per_file = self.facts["sequences_per_file"]
        self.num_rows = count_rows(self.folder, self.sequences_per_file)
        self.first_row = 0  # of all ranks: where the run goes on
        self.position, self.first_worker = {}, 0

    def check_rows(self, rows: int) -> None:
        """Raise `InputError` where fewer than `rows` rows follow the place the run goes on from."""
        if self.first_row + rows > self.num_rows:
            raise InputError(
                f"pretokenized_dir: '{self.folder}' holds {self.num_rows:,} rows, the run needs "
                f"{self.first_row + rows:,}; pack more "
                "(the same command continues) or lower max_steps"
            )

    def validation_sequences(self) -> list[TokenSequence[PretokenizedState]]:
        """The held-out rows that were packed with the others."""
        table = open_table(self.folder / VALIDATION_FILE)
        sources = table.column("source").to_numpy()
        return [
            {"input_ids": row.astype(np.int32), "source": self.names[source]}
            for row, source in zip(token_sequences(table), sources, strict=True)
        ]

    def __iter__(self) -> Iterator[TokenSequence[PretokenizedState]]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        begin = self.first_row + (worker * self.world_size + self.rank) * self.batch_size
        stride = num_workers * self.world_size * self.batch_size
        opened: int | None = None
        while begin + self.batch_size <= self.num_rows:
            # After this batch of every rank so many rows have been read.
            rows_read = begin + (self.world_size - self.rank) * self.batch_size
            state: PretokenizedState = {"worker": worker, "num_workers": num_workers, "rows_read": rows_read}
            for number in range(begin, begin + self.batch_size):
                file, place = divmod(number, self.sequences_per_file)
                if file != opened:
                    opened, (rows, sources) = file, self._read_file(file)
                row, source = rows[place].astype(np.int32), self.names[sources[place]]
                yield {"input_ids": row, "source": source, "data_state": state}
            begin += stride
        raise RunStopped(f"pretokenized_dir: all {self.num_rows:,} rows of '{self.folder}' have been read")

    def _read_file(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        table = open_table(sequences_file(self.folder, number))
        return token_sequences(table), table.column("source").to_numpy()

    def resume(self, ranks: list[RankState[PretokenizedState]], num_workers: int) -> None:
        """Go on after the last batch that all ranks have trained on."""
        last = ranks[0]["workers"][str(ranks[0]["last_worker"])]
        if "rows_read" not in last:
            raise InputError("pretokenized_dir: the checkpoint was written by a run that did not read packed rows")
        self.first_row = last["rows_read"]
        self.position = {"0": last}

    def progress(self, states: list[PretokenizedState]) -> dict[str, Progress]:
        """By source, the rows drawn in all."""
        rows_read = max(state["rows_read"] for state in states)
        file, rest = divmod(rows_read, self.sequences_per_file)
        before = (
            dict.fromkeys(self.names, 0) if file == 0 else file_state(sequences_file(self.folder, file - 1))["drawn"]
        )
        counts = np.zeros(len(self.names), dtype=int)
        if rest:
            column = self._read_file(file)[1][:rest]
            counts = np.bincount(column, minlength=len(self.names))
        return {name: {"rows": before[name] + int(counts[i])} for i, name in enumerate(self.names)}


def count_rows(folder: Path, sequences_per_file: int) -> int:
    """The rows of a folder up to the first file that is not full."""
    count = 0
    while (file := sequences_file(folder, count // sequences_per_file)).exists():
        count += open_table(file).num_rows
        if count % sequences_per_file:
            break
    return count


def open_table(file: Path) -> pa.Table:
    """A file of rows, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def token_sequences(table: pa.Table) -> np.ndarray:
    """The tokens of a table of one record batch: uint16 or int32 of shape (rows, sequence_length), without a copy."""
    column = table.column("input_ids").chunk(0)
    tokens: np.ndarray = column.values.to_numpy()
    return tokens.reshape(len(column), -1)


def file_state(file: Path) -> MixtureState:
    """The state of the mixture after the last row of a file."""
    state: MixtureState = json.loads(open_table(file).schema.metadata[STATE_KEY])
    return state
