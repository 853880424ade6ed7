"""The interface of training data, and the states that checkpoints save. All states are plain JSON.

    RankState                     one for each rank: its data-loader workers
        MixtureState              a worker that reads the mixture (`Mixture`)
            PackedSequencesState  one source (`PackedSequences`)
                DocumentsState    its documents (`Documents`)
        PretokenizedState         a worker that reads pretokenized sequences (`PretokenizedMixture`)

The class in brackets saves and restores the state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from ..medqa.questions import Question
from .arguments import DataArguments


class LostDocuments(TypedDict):
    """The documents that are lost of an epoch so far, each 4 KB of a longer one counted as one.

    `documents` counts all that were read, `unusable` those that are lost, `behind` those behind a damaged page of the
    shard that is being read, which are lost at its end. `broken` is the share of the source in files that break off.
    """

    documents: int
    unusable: int
    behind: int
    broken: float


class Counts(TypedDict):
    """What a worker has read of a source: records, documents among them, and records skipped, by reason.

    `lost` counts among its own records of the current epoch.
    """

    records_read: int
    documents_read: int
    skipped: dict[str, int]
    lost: LostDocuments


class DocumentsState(Counts):
    """The position of one worker in the documents of a source.

    `position` is (epoch, shard, record). `earlier` lists the workers of this epoch before their number changed, as
    [number of workers, [their positions]]. `seen` counts lost documents among all records that the worker has passed
    in this epoch, its own and those of the others.
    """

    position: list[int]
    earlier: list[list[Any]]
    seen: LostDocuments


class WindowState(TypedDict):
    """The start of a window of documents: their state, tokens read so far, and token ids left over from before."""

    documents: DocumentsState
    tokens_read: int
    remainder: list[int]


class PackedSequencesState(WindowState):
    """The position of one worker in the sequences of a source: its window, and the sequences drawn from it."""

    drawn: int
    read: Counts


class MixtureState(TypedDict):
    """The position of one data-loader worker in the mixture, after one of its sequences.

    `settings` are those of `position_settings`; the state is valid only where they are the same. By source, `drawn`
    counts sequences, `schedule` those since the shares last changed (None: start a new schedule), and `sources` holds
    the positions.
    """

    worker: int
    num_workers: int
    settings: dict[str, Any]
    schedule: dict[str, int] | None
    drawn: dict[str, int]
    sources: dict[str, PackedSequencesState]


class PretokenizedState(TypedDict):
    """The position of one data-loader worker in pretokenized sequences: `sequences_read` counts those of all ranks."""

    worker: int
    num_workers: int
    sequences_read: int


State = TypeVar("State", MixtureState, PretokenizedState)


class RankState(TypedDict, Generic[State]):
    """The position of one rank: the states of its workers by number, and the worker that made its last batch."""

    workers: dict[str, State]
    last_worker: int


class TokenSequence(TypedDict, Generic[State]):
    """`input_ids`, int32 of shape (sequence_length,), their source, and in training the state after the sequence."""

    input_ids: np.ndarray
    source: str
    data_state: NotRequired[State]


class Progress(TypedDict):
    """Progress in one source, over all workers: sequences drawn and, if known, epochs and records skipped."""

    sequences: int
    epochs: NotRequired[int]
    skipped: NotRequired[int]


@dataclass(eq=False, repr=False)
class TrainingData(IterableDataset[TokenSequence[State]], Generic[State]):
    """What a training script needs of its data: sequences of equal length, with a position that can be saved.

    Args:
        arguments, tokenizer, seed: of the run.
        batch_size: sequences of a rank's batch.
        rank, world_size: this process among all that train.

    Attributes:
        sequence_length: tokens of a sequence.
        sources, names: the sources that sequences are drawn from.
        position: the state to resume from, by worker; empty at the start.
        first_worker: the worker that makes the first batch after resuming.
        decontaminated: the evaluation questions that no document holds, for reports.
    """

    arguments: DataArguments
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0
    batch_size: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.sequence_length, self.sources = self.arguments.max_seq_length, self.arguments.mixture
        self.names = [source.name for source in self.sources]
        self.position: dict[str, State] = {}
        self.first_worker = 0
        self.decontaminated = "none"

    def __iter__(self) -> Iterator[TokenSequence[State]]:
        raise NotImplementedError

    def resume(self, ranks: list[RankState[State]], num_workers: int) -> str | None:
        """Resume from the states of all ranks; returns a message for the user if the order of sequences changes."""
        raise NotImplementedError

    def progress(self, states: list[State]) -> dict[str, Progress]:
        """Progress by source, from the states of all workers."""
        raise NotImplementedError

    def validation_sequences(self) -> list[TokenSequence[Any]]:
        """The sequences to validate on: of the mixture, in its proportions, and of each text outside it."""
        raise NotImplementedError

    def dev_questions(self) -> list[Question]:
        """The dev questions of the medqa sources."""
        raise NotImplementedError

    @property
    def validation_names(self) -> list[str]:
        """The sources of validation sequences: those of the mixture, and the texts outside it."""
        return [*self.names, *(source.name for source in self.arguments.outside)]

    def check_workers(self, num_workers: int) -> None:
        """Raise `InputError` if a data-loader worker has nothing to read."""

    def check_length(self, sequences: int) -> None:
        """Raise `InputError` if fewer sequences follow the position. A mixture that is read has no end."""

    def describe(self, tokens: int) -> dict[str, str]:
        """Describe the data for the start-up block of a run of so many tokens."""
        return {
            f"  {one.name}": f"{float(one.weight):6.1%}  {int(tokens * one.weight):15,} tokens" for one in self.sources
        }
