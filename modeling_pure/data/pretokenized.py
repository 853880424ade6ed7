"""Sequences that were written once (`commands.pretokenize`), read with the same exactness.

A folder holds the sequences of the mixture in their order, so a position in it is one number. Batches are stretches of
that order, dealt out to the ranks in turn: a run that resumes with other ranks or workers reads exactly what follows.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
from torch.utils.data import get_worker_info
from tqdm import tqdm

from ..atomic import write_atomically
from ..errors import InputError, RunStopped, first_line
from ..medqa.formats import describe_formats
from ..medqa.questions import Question
from .arguments import fixed_settings
from .mixture import Mixture
from .opening import split_questions
from .states import MixtureState, PretokenizedState, Progress, RankState, TokenSequence, TrainingData

FACTS_FILE = "pretokenized.json"
VALIDATION_FILE = "validation.arrow"
STATE_KEY = b"pure_state"
SEQUENCES_PER_FILE = 4096


class PretokenizedFacts(TypedDict):
    """The content of `pretokenized.json`: the `fixed_settings` of the sequences, and how many are in a file."""

    settings: dict[str, Any]
    sequences_per_file: int


def sequences_file(folder: Path, number: int) -> Path:
    """The name of one file of sequences."""
    return folder / f"sequences-{number:05d}.arrow"


def read_facts(folder: str | Path, expected: dict[str, Any]) -> PretokenizedFacts:
    """Read what a folder of sequences holds.

    Raises:
        InputError: no sequences, or sequences that were made with other settings than `expected`.
    """
    try:
        facts: PretokenizedFacts = json.loads((Path(folder) / FACTS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"pretokenized_dir: '{folder}' holds no pretokenized sequences: {first_line(error)}"
        ) from error
    for key, value in expected.items():
        if facts["settings"].get(key) != value:
            raise InputError(
                f"pretokenized_dir: '{folder}' has another {key} ({facts['settings'].get(key)}, not {value})"
            )
    return facts


class PretokenizedMixture(TrainingData[PretokenizedState]):
    """The sequences of a folder for one rank, each batch of a rank following that of the rank before.

    Raises:
        InputError: the folder holds no sequences, or was written with other settings.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decontaminated = "when its sequences were written"
        self.folder = Path(self.arguments.pretokenized_dir or "")
        facts = read_facts(self.folder, fixed_settings(self.arguments, self.tokenizer, self.seed))
        self.sequences_per_file = facts["sequences_per_file"]
        self.num_sequences = count_sequences(self.folder, self.sequences_per_file)
        self.first = 0  # the sequence, of all ranks, from which the run continues

    def check_length(self, sequences: int) -> None:
        """Raise `InputError` if fewer sequences follow the position."""
        if self.first + sequences > self.num_sequences:
            raise InputError(
                f"pretokenized_dir: '{self.folder}' holds {self.num_sequences:,} sequences, the run needs "
                f"{self.first + sequences:,}; write more (the same command continues) or lower max_steps"
            )

    def validation_sequences(self) -> list[TokenSequence[Any]]:
        """Those that were written with the others."""
        table = open_table(self.folder / VALIDATION_FILE)
        names = self.validation_names
        return [
            {"input_ids": ids.astype(np.int32), "source": names[source]}
            for ids, source in zip(token_ids(table), table.column("source").to_numpy(), strict=True)
        ]

    def dev_questions(self) -> list[Question]:
        """Read from the sources: the folder holds sequences only."""
        exams = [source for source in self.sources if source.format == "medqa"]
        return [question for exam in exams for question in split_questions(exam, self.arguments.grpo_holdout)[1]]

    def __iter__(self) -> Iterator[TokenSequence[PretokenizedState]]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        begin = self.first + (worker * self.world_size + self.rank) * self.batch_size
        stride = num_workers * self.world_size * self.batch_size
        opened: int | None = None
        while begin + self.batch_size <= self.num_sequences:
            # After this batch of every rank so many have been read.
            read = begin + (self.world_size - self.rank) * self.batch_size
            state: PretokenizedState = {"worker": worker, "num_workers": num_workers, "sequences_read": read}
            for number in range(begin, begin + self.batch_size):
                file, place = divmod(number, self.sequences_per_file)
                if file != opened:
                    opened, (tokens, sources) = file, self._read_file(file)
                ids, source = tokens[place].astype(np.int32), self.names[sources[place]]
                yield {"input_ids": ids, "source": source, "data_state": state}
            begin += stride
        raise RunStopped(f"pretokenized_dir: all {self.num_sequences:,} sequences of '{self.folder}' have been read")

    def _read_file(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        table = open_table(sequences_file(self.folder, number))
        return token_ids(table), table.column("source").to_numpy()

    def resume(self, ranks: list[RankState[PretokenizedState]], num_workers: int) -> None:
        """Continue after the last batch that all ranks have trained on."""
        last = ranks[0]["workers"][str(ranks[0]["last_worker"])]
        if "sequences_read" not in last:
            raise InputError("pretokenized_dir: the run that wrote the checkpoint did not read pretokenized sequences")
        self.first = last["sequences_read"]
        self.position = {"0": last}

    def progress(self, states: list[PretokenizedState]) -> dict[str, Progress]:
        """By source, the sequences drawn in all."""
        file, rest = divmod(max(state["sequences_read"] for state in states), self.sequences_per_file)
        before = file_state(sequences_file(self.folder, file - 1))["drawn"] if file else dict.fromkeys(self.names, 0)
        sources = self._read_file(file)[1][:rest] if rest else np.empty(0, dtype=int)
        counts = np.bincount(sources, minlength=len(self.names))
        return {name: {"sequences": before[name] + int(counts[i])} for i, name in enumerate(self.names)}

    def describe(self, tokens: int) -> dict[str, str]:
        """Also the folder, and the answers of medqa sources."""
        exams = {one.name: describe_formats(one.answer_formats) for one in self.sources if one.answer_formats}
        return {
            **super().describe(tokens),
            "pretokenized": f"{self.num_sequences:,} sequences in {self.folder}",
            **{f"answers of {name}": described for name, described in exams.items()},
        }


def count_sequences(folder: Path, sequences_per_file: int) -> int:
    """The sequences of a folder up to the first file that is not full."""
    count = 0
    while (file := sequences_file(folder, count // sequences_per_file)).exists():
        count += open_table(file).num_rows
        if count % sequences_per_file:
            break
    return count


def open_table(file: Path) -> pa.Table:
    """A file of sequences, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def token_ids(table: pa.Table) -> np.ndarray:
    """The tokens of a table of one record batch: uint16 or int32 of shape (rows, sequence_length), without a copy."""
    column = table.column("input_ids").chunk(0)
    tokens: np.ndarray = column.values.to_numpy()
    return tokens.reshape(len(column), -1)


def file_state(file: Path) -> MixtureState:
    """The state of the mixture after the last sequence of a file."""
    state: MixtureState = json.loads(open_table(file).schema.metadata[STATE_KEY])
    return state


# ---- writing --------------------------------------------------------------------------------------------------------


def write_mixture(
    folder: Path, mixture: Mixture, count: int, sequences_per_file: int = SEQUENCES_PER_FILE
) -> MixtureState:
    """Write the first `count` sequences of a mixture, some files of which may exist; returns the last state.

    A file that is not full is written again, so that what follows it joins on without a gap.
    """
    number = min(count, count_sequences(folder, sequences_per_file)) // sequences_per_file  # files that stay
    state = file_state(sequences_file(folder, number - 1)) if number else None
    stream = islice(mixture.sequences_of_worker(state=state), count - number * sequences_per_file)
    done, tokens = number * sequences_per_file * mixture.sequence_length, count * mixture.sequence_length
    with tqdm(total=tokens, initial=done, unit="tok", unit_scale=True, desc="pretokenizing") as bar:
        while batch := list(islice(stream, sequences_per_file)):
            bar.update(len(batch) * mixture.sequence_length)
            write_sequences(sequences_file(folder, number), batch, mixture.names)
            number, state = number + 1, batch[-1]["data_state"]
    if state is None:
        raise ValueError(f"count: expected a number above 0, found {count}")
    return state


def write_sequences(file: Path, batch: list[TokenSequence[Any]], names: list[str]) -> None:
    """Write one table of `input_ids` and `source`, with the state after the last sequence, in one atomic step."""
    tokens = np.stack([one["input_ids"] for one in batch])
    tokens = tokens.astype(np.uint16 if tokens.max() < 1 << 16 else np.int32)
    columns = {
        "input_ids": pa.FixedSizeListArray.from_arrays(tokens.reshape(-1), tokens.shape[1]),
        "source": pa.array([names.index(one["source"]) for one in batch], pa.int16()),
    }
    table = pa.table(columns).replace_schema_metadata({STATE_KEY: json.dumps(batch[-1].get("data_state"))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(file, sink.getvalue())
