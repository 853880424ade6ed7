"""What the stages of the pipeline hand on: rows, and the states that a checkpoint holds, all of which JSON can hold.

    RankState                     one of each rank: its data-loader workers
        MixtureState              a worker on the mixture, or
            PackedRowsState       the rows of one source for that worker
                DocumentsState    the documents of that source
        PackedState               a worker on rows that were packed before

Each is made and taken up again by the class of its stage.
"""

from collections.abc import Iterator
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from .sources import Source


class Counts(TypedDict):
    """What one reader has read of a source: rows, documents given, and rows skipped by reason."""

    rows_read: int
    given: int
    skipped: dict[str, int]


class PassStart(TypedDict):
    """The counts at the beginning of a reader's pass over a source; faults are rows that count as unusable."""

    rows_read: int
    given: int
    faults: int


class DocumentsState(Counts):
    """Where one reader is in the documents of a source.

    `position` is the pass, the place of a piece in it and the row in the piece. `earlier` are the readers of the same
    passes before their number changed: [how many, [the position of each]].
    """

    position: list[int]
    earlier: list[list[Any]]
    before_pass: PassStart


class WindowState(TypedDict):
    """Where a window of documents began: their state, tokens read before it, ids left of the window before."""

    documents: DocumentsState
    tokens_read: int
    remainder: list[int]


class PackedRowsState(WindowState):
    """Where one reader is in the rows of a source: its window, rows drawn from it, and what has been read in all."""

    drawn: int
    read: Counts


class MixtureState(TypedDict):
    """Where a data-loader worker of one rank is in the mixture, after one of its rows.

    `settings` are digests by recipe key, without which the state means nothing. By source: `schedule`, rows since the
    shares last changed (None: begin anew), `drawn`, rows in all, and `sources`, the state of its rows.
    """

    worker: int
    num_workers: int
    settings: dict[str, int | str]
    schedule: dict[str, int] | None
    drawn: dict[str, int]
    sources: dict[str, PackedRowsState]


class PackedState(TypedDict):
    """Where a data-loader worker of one rank is in packed rows: the rows that all ranks have read with its batch."""

    worker: int
    num_workers: int
    rows_read: int


State = TypeVar("State", MixtureState, PackedState)


class RankState(TypedDict, Generic[State]):
    """Where a rank is in its data: the states of its workers by number, and the worker of its last batch."""

    workers: dict[str, State]
    last_worker: int


class Row(TypedDict, Generic[State]):
    """A row: `input_ids`, int32 of shape (row_length,), its source, and in training the state that follows it."""

    input_ids: np.ndarray
    source: str
    data_state: NotRequired[State]


class Progress(TypedDict):
    """How far all readers are in a source: rows drawn, passes completed and rows skipped, where these are known."""

    rows: int
    passes: NotRequired[int]
    skipped: NotRequired[int]


class TrainingRows(IterableDataset[Row[State]], Generic[State]):
    """What the trainer asks of its data: rows of one length, and a position that can be saved and taken up again.

    Attributes:
        tokenizer: what made the rows.
        row_length: tokens of a row.
        sources, names: what the rows are drawn from.
        position: by worker, the state to go on from; empty at the beginning.
        first_worker: the worker whose turn it is when the run goes on.
    """

    tokenizer: PreTrainedTokenizerBase
    row_length: int
    sources: list[Source]
    names: list[str]
    position: dict[str, State]
    first_worker: int

    def __iter__(self) -> Iterator[Row[State]]:
        raise NotImplementedError

    def resume(self, ranks: list[RankState[State]], num_workers: int) -> str | None:
        """Go on from the states of all ranks' workers; returns what changes for the user, if anything does."""
        raise NotImplementedError

    def progress(self, states: list[State]) -> dict[str, Progress]:
        """How far the run is in each source, from the states of all readers."""
        raise NotImplementedError
