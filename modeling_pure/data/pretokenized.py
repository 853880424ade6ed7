"""Write the sequences of a mixture to a folder, and read them for training.

A folder holds the sequences in the order of the mixture, so that a position in it is one number. Batches are
consecutive parts of that order, assigned to the ranks in turn: a run that resumes with another number of ranks or
workers reads exactly the sequences that follow.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

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


def sequences_file(folder: Path, number: int) -> Path:
    """The path of a file of sequences."""
    return folder / f"sequences-{number:05d}.arrow"


def check_settings(folder: Path, expected: dict[str, Any]) -> None:
    """Raise `InputError` if a folder has no sequences, or sequences with other `fixed_settings`."""
    try:
        settings = json.loads((folder / FACTS_FILE).read_text())["settings"]
    except (OSError, ValueError) as error:
        raise InputError(f"pretokenized_dir: '{folder}' has no pretokenized sequences: {first_line(error)}") from error
    for key, value in expected.items():
        if (written := settings.get(key)) != value:
            raise InputError(f"pretokenized_dir: '{folder}' was written with another {key} ({written}, not {value})")


class PretokenizedMixture(TrainingData[PretokenizedState]):
    """The sequences of a folder for one rank; `InputError` if the folder does not fit the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decontaminated = "when its sequences were written"
        self.folder = Path(self.arguments.pretokenized_dir or "")
        check_settings(self.folder, fixed_settings(self.arguments, self.tokenizer, self.seed))
        self.num_sequences = count_sequences(self.folder)
        self.first = 0  # number of the sequence from which all ranks continue

    def check_length(self, sequences: int) -> None:
        """See `TrainingData`."""
        if self.first + sequences > self.num_sequences:
            raise InputError(
                f"pretokenized_dir: '{self.folder}' holds {self.num_sequences:,} sequences, but the run needs "
                f"{self.first + sequences:,}; pretokenize more, or lower max_steps"
            )

    def validation_sequences(self) -> list[TokenSequence[Any]]:
        """Read the validation sequences of the folder."""
        table = open_table(self.folder / VALIDATION_FILE)
        names = self.validation_names
        return [
            {"input_ids": ids.astype(np.int32), "source": names[source]}
            for ids, source in zip(token_ids(table), table.column("source").to_numpy(), strict=True)
        ]

    def dev_questions(self) -> list[Question]:
        """Read the dev questions of the sources: the folder holds only sequences."""
        exams = [source for source in self.sources if source.format == "medqa"]
        return [question for exam in exams for question in split_questions(exam, self.arguments.grpo_holdout)[1]]

    def __iter__(self) -> Iterator[TokenSequence[PretokenizedState]]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        begin = self.first + (worker * self.world_size + self.rank) * self.batch_size
        stride = num_workers * self.world_size * self.batch_size
        opened: int | None = None
        while begin + self.batch_size <= self.num_sequences:
            # The number of sequences read once every rank has this batch.
            read = begin + (self.world_size - self.rank) * self.batch_size
            state: PretokenizedState = {"worker": worker, "num_workers": num_workers, "sequences_read": read}
            for number in range(begin, begin + self.batch_size):
                file, place = divmod(number, SEQUENCES_PER_FILE)
                if file != opened:
                    opened, (tokens, sources) = file, self._read_file(file)
                ids, source = tokens[place].astype(np.int32), self.names[sources[place]]
                yield {"input_ids": ids, "source": source, "data_state": state}
            begin += stride
        raise RunStopped(f"pretokenized_dir: '{self.folder}' has only {self.num_sequences:,} sequences; all were read")

    def _read_file(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        table = open_table(sequences_file(self.folder, number))
        return token_ids(table), table.column("source").to_numpy()

    def resume(self, ranks: list[RankState[PretokenizedState]], num_workers: int) -> None:
        """Continue after the last batch that all ranks trained on."""
        last = ranks[0]["workers"][str(ranks[0]["last_worker"])]
        if "sequences_read" not in last:
            raise InputError("pretokenized_dir: the run that wrote the checkpoint did not read pretokenized sequences")
        self.first = last["sequences_read"]
        self.position = {"0": last}

    def progress(self, states: list[PretokenizedState]) -> dict[str, Progress]:
        """See `TrainingData`; epochs and skipped records are unknown."""
        file, rest = divmod(max(state["sequences_read"] for state in states), SEQUENCES_PER_FILE)
        before = file_state(sequences_file(self.folder, file - 1))["drawn"] if file else dict.fromkeys(self.names, 0)
        sources = self._read_file(file)[1][:rest] if rest else np.empty(0, dtype=int)
        counts = np.bincount(sources, minlength=len(self.names))
        return {name: {"sequences": before[name] + int(counts[i])} for i, name in enumerate(self.names)}

    def describe(self, tokens: int) -> dict[str, str]:
        """See `TrainingData`; also the folder, and the answers of medqa sources."""
        exams = {one.name: describe_formats(one.answer_formats) for one in self.sources if one.answer_formats}
        return {
            **super().describe(tokens),
            "pretokenized": f"{self.num_sequences:,} sequences in {self.folder}",
            **{f"answers of {name}": described for name, described in exams.items()},
        }


def count_sequences(folder: Path) -> int:
    """Count the sequences of a folder up to the first file that is not full."""
    count = 0
    while (file := sequences_file(folder, count // SEQUENCES_PER_FILE)).exists():
        count += open_table(file).num_rows
        if count % SEQUENCES_PER_FILE:
            break
    return count


def open_table(file: Path) -> pa.Table:
    """Open a file of sequences, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def token_ids(table: pa.Table) -> np.ndarray:
    """The tokens of a table, uint16 or int32 of shape (sequences, sequence_length), without a copy."""
    column = table.column("input_ids").chunk(0)
    tokens: np.ndarray = column.values.to_numpy()
    return tokens.reshape(len(column), -1)


def file_state(file: Path) -> MixtureState:
    """The state of the mixture after the last sequence of a file."""
    state: MixtureState = json.loads(open_table(file).schema.metadata[STATE_KEY])
    return state


# ---- writing --------------------------------------------------------------------------------------------------------


def write_mixture(folder: Path, mixture: Mixture, count: int) -> MixtureState:
    """Write the first `count` sequences of a mixture, and return the state after the last.

    Full files are kept; one that is not full is written again.
    """
    number = min(count, count_sequences(folder)) // SEQUENCES_PER_FILE
    state = file_state(sequences_file(folder, number - 1)) if number else None
    kept = number * SEQUENCES_PER_FILE
    stream = islice(mixture.sequences_of_worker(state=state), count - kept)
    with tqdm(total=count, initial=kept, unit="seq", desc="pretokenizing", disable=None) as bar:
        while batch := list(islice(stream, SEQUENCES_PER_FILE)):
            bar.update(len(batch))
            write_sequences(sequences_file(folder, number), batch, mixture.names)
            number, state = number + 1, batch[-1]["data_state"]
    if state is None:
        raise ValueError(f"count: expected a number above 0, found {count}")
    return state


def write_sequences(file: Path, batch: list[TokenSequence[Any]], names: list[str]) -> None:
    """Write `input_ids` and `source` of sequences to a file, with the state after the last, atomically."""
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
