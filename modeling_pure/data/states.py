"""The interface of training data, and the states that checkpoints save. All states are plain JSON.

    RankState                     one for each rank: its data-loader workers
        MixtureState              a worker that reads the mixture (`Mixture`)
            PackedSequencesState  one source (`PackedSequences`)
                DocumentsState    its documents (`Documents`)
        PretokenizedState         a worker that reads pretokenized sequences (`PretokenizedMixture`)

The class in brackets saves and restores the state.
"""

from dataclasses import dataclass
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from ..medqa.questions import Question
from .arguments import DataArguments


class LostDocuments(TypedDict):
    """The documents lost so far in an epoch; every 4 KB of a long record count as one document.

    `documents` counts all that were read and `unusable` those that are lost. `behind` counts those after a damaged
    page of the current shard, which join `unusable` at its end. `broken` is the share of the source in truncated
    files.
    """

    documents: int
    unusable: int
    behind: int
    broken: float


class Counts(TypedDict):
    """What a worker has read of a source: documents, records skipped by reason, and losses in the current epoch."""

    documents_read: int
    skipped: dict[str, int]
    lost: LostDocuments


class DocumentsState(Counts):
    """The position of one worker in the documents of a source.

    `position` is (epoch, shard, record). `earlier` lists the workers of this epoch before their number changed, as
    [number of workers, [their positions]]. `seen` counts losses among all records that the worker has passed in this
    epoch, including those of other workers.
    """

    position: list[int]
    earlier: list[list[Any]]
    seen: LostDocuments


class WindowState(TypedDict):
    """The start of a window of documents: their state, and the token ids left over from the window before."""

    documents: DocumentsState
    remainder: list[int]


class PackedSequencesState(WindowState):
    """The position of one worker in the sequences of a source: its window, and the sequences drawn from it."""

    drawn: int
    read: Counts


class MixtureState(TypedDict):
    """The position of one data-loader worker in the mixture, after one of its sequences.

    The state is valid only for a run with the same `settings` (`position_settings`). By source, `drawn` counts
    sequences, `schedule` counts those since the shares last changed (None starts a new schedule), and `sources` holds
    the positions.
    """

    worker: int
    num_workers: int
    settings: dict[str, Any]
    schedule: dict[str, int] | None
    drawn: dict[str, int]
    sources: dict[str, PackedSequencesState]


class PretokenizedState(TypedDict):
    """The position of one data-loader worker: `sequences_read` counts the pretokenized sequences of all ranks."""

    worker: int
    num_workers: int
    sequences_read: int


State = TypeVar("State", MixtureState, PretokenizedState)


class RankState(TypedDict, Generic[State]):
    """The position of one rank: the states of its workers by number, and the worker that made its last batch."""

    workers: dict[str, State]
    last_worker: int


class TokenSequence(TypedDict, Generic[State]):
    """`input_ids` are int32 of shape (sequence_length,). Training sequences also carry the state that follows them."""

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
    """The data of a training run: sequences of equal length, and a position that can be saved.

    Args:
        batch_size: sequences in a batch of one rank.
        rank, world_size: this process among all that train.

    Attributes:
        position: the state to resume from, by worker; empty in a new run.
        first_worker: the worker that makes the first batch after resuming.
        decontaminated: the evaluation questions that no document contains, for reports.
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

    def resume(self, ranks: list[RankState[State]], num_workers: int) -> str | None:
        """Resume from the states of all ranks; returns a message if the order of sequences changes."""
        raise NotImplementedError

    def progress(self, states: list[State]) -> dict[str, Progress]:
        """Progress by source, from the states of all workers."""
        raise NotImplementedError

    def validation_sequences(self) -> list[TokenSequence[Any]]:
        """The sequences to validate on: from the mixture, in its proportions, and from each text outside it."""
        raise NotImplementedError

    def dev_questions(self) -> list[Question]:
        """The dev questions of the medqa sources."""
        raise NotImplementedError

    @property
    def validation_names(self) -> list[str]:
        """The names of validation sequences' sources: those of the mixture, then the texts outside it."""
        return [*self.names, *(source.name for source in self.arguments.outside)]

    def check_workers(self, num_workers: int) -> None:
        """Raise `InputError` if a data-loader worker would have nothing to read."""

    def check_length(self, sequences: int) -> None:
        """Raise `InputError` if the run needs more sequences than are left."""

    def describe(self, tokens: int) -> dict[str, str]:
        """Describe the data of a run of `tokens` tokens for its start-up block."""
        return {
            f"  {one.name}": f"{float(one.weight):6.1%}  {int(tokens * one.weight):15,} tokens" for one in self.sources
        }
