"""Types of the data pipeline: its rows, and the states that are saved in checkpoints. All states are plain JSON.

    RankState                     one for each rank: its data-loader workers
        MixtureState              a worker that reads the mixture (`Mixture`)
            PackedSequencesState       one source (`PackedSequences`)
                DocumentsState    its documents (`Documents`)
        PretokenizedState               a worker that reads packed rows (`PretokenizedMixture`)

The class in brackets saves and restores the state.
"""

from collections.abc import Iterator
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from .sources import Source


class Losses(TypedDict):
    """What is lost of a pass so far, in documents, each 4 KB of a longer one counted as one.

    `documents` counts all that were read, `unusable` those that are lost, `behind` those behind a
    damaged page of the shard that is being read, which are lost once it has been. `broken` is the share of the source
    in files that break off.
    """

    documents: int
    unusable: int
    behind: int
    broken: float


class Counts(TypedDict):
    """Rows that one reader has read of a source, documents it has returned, and rows skipped, by reason.

    `losses` are those among its own rows of the current pass.
    """

    rows_read: int
    given: int
    skipped: dict[str, int]
    losses: NotRequired[Losses]  # which older checkpoints do not have


class EpochStart(TypedDict):
    """The documents that a reader had returned when its current pass began."""

    given: int


class DocumentsState(Counts):
    """The position of one reader in the documents of a source.

    `position` is (pass, shard, row). `earlier` lists the readers of this pass before their number changed, each entry
    as [number of readers, [their positions]]. `seen` are the losses among all rows of this pass that the reader has
    passed, its own and those of the readers it shares shards with.
    """

    position: list[int]
    earlier: list[list[Any]]
    before_epoch: EpochStart
    seen: NotRequired[Losses]


class WindowState(TypedDict):
    """The start of a window of documents: their state, tokens read so far, and token ids left over from before."""

    documents: DocumentsState
    tokens_read: int
    remainder: list[int]


class PackedSequencesState(WindowState):
    """The position of one reader in the rows of a source: its window, and the rows drawn from it."""

    drawn: int
    read: Counts


class MixtureState(TypedDict):
    """The position of one data-loader worker in the mixture, after one of its rows.

    `settings` are digests by recipe key; the state is valid only where they are the same. By source: `drawn` counts
    rows, `schedule` the rows since the shares last changed (None: start a new schedule), `sources` is the position.
    """

    worker: int
    num_workers: int
    settings: dict[str, int | str]
    schedule: dict[str, int] | None
    drawn: dict[str, int]
    sources: dict[str, PackedSequencesState]


class PretokenizedState(TypedDict):
    """The position of one data-loader worker in packed rows: `rows_read` counts those of all ranks."""

    worker: int
    num_workers: int
    rows_read: int


State = TypeVar("State", MixtureState, PretokenizedState)


class RankState(TypedDict, Generic[State]):
    """The position of one rank: the states of its workers by number, and the worker that made its last batch."""

    workers: dict[str, State]
    last_worker: int


class TokenSequence(TypedDict, Generic[State]):
    """One row: `input_ids`, int32 of shape (sequence_length,), its source, and in training the state after it."""

    input_ids: np.ndarray
    source: str
    data_state: NotRequired[State]


class Progress(TypedDict):
    """Progress in one source, over all readers: rows drawn and, if known, epochs completed and rows skipped."""

    rows: int
    epochs: NotRequired[int]
    skipped: NotRequired[int]


class TrainingData(IterableDataset[TokenSequence[State]], Generic[State]):
    """The interface of training data: rows of equal length, and a position that can be saved and restored.

    Attributes:
        tokenizer: the tokenizer of the rows.
        sequence_length: tokens in a row.
        sources, names: the sources that rows are drawn from.
        position: the state to resume from, by worker; empty at the start.
        first_worker: the worker that makes the first batch after resuming.
    """

    tokenizer: PreTrainedTokenizerBase
    sequence_length: int
    sources: list[Source]
    names: list[str]
    position: dict[str, State]
    first_worker: int

    def __iter__(self) -> Iterator[TokenSequence[State]]:
        raise NotImplementedError

    def resume(self, ranks: list[RankState[State]], num_workers: int) -> str | None:
        """Resume from the states of all ranks; returns a message for the user if the order of rows changes."""
        raise NotImplementedError

    def progress(self, states: list[State]) -> dict[str, Progress]:
        """Progress by source, from the states of all readers."""
        raise NotImplementedError
