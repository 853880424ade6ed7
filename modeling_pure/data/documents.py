"""The documents of one source that belong to one worker, epoch after epoch, from a position that can be saved.

In every epoch the shards of a source are shuffled and shared among the workers. Of many shards most are assigned
whole; the others are shared record by record, every `num_workers`-th record to the same worker. So each record of an
epoch belongs to one worker, even if there are only a few files. A position is three integers (epoch, shard, record),
and a worker has read all of its records before its position. When the number of workers changes, the positions also
determine which records are still unread.

The limit on losses is in documents, and is the same for any number of workers. Every 4 KB of a record count as one
document, because the record may be a whole file that was not written as lines. Workers that share their shards by
records see the same records, and each stops where a single worker would. The losses of workers of whole shards are
summed when the run logs.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..medqa.decontamination import QuestionFinder
from .decoders import LOST, Fault
from .remote import SourceFailed
from .source_records import VALIDATION, Records
from .states import Counts, DocumentsState, LostDocuments

EVALUATION = Fault("evaluation question")
MANY_SHARDS = 8  # per worker
EMPTY_EPOCHS = 20
FREE_FAULTS = 100
DOCUMENT_BYTES = 4096


class Position(NamedTuple):
    """The next record to read: number `record` of the shard at `place` in the order of the epoch."""

    epoch: int = 0
    place: int = 0
    record: int = 0


class Workers:
    """All workers of a source: who owns which record and, given their positions, which records have been read."""

    def __init__(self, num_shards: int, num_workers: int, positions: list[Position] | None = None) -> None:
        self.num_workers = num_workers
        # The first shards are assigned whole, and the rest is shared by records. Of few shards, whole ones would make
        # unequal shares.
        self.whole = num_shards - num_shards % num_workers if num_shards >= MANY_SHARDS * num_workers else 0
        self.positions = positions or []

    def owner(self, place: int, record: int) -> int:
        """The worker of a record of the shard at a place."""
        return (place if place < self.whole else record) % self.num_workers

    def has_read(self, epoch: int, place: int, record: int) -> bool:
        """Whether the owner of a record has read it."""
        return (epoch, place, record) < self.positions[self.owner(place, record)]

    def first_unread(self, epoch: int, place: int) -> int | None:
        """A record before which all records of the shard have been read; None if the whole shard has been read."""
        owners = [self.positions[self.owner(place, 0)]] if place < self.whole else self.positions
        records = [at.record if (epoch, place) == at[:2] else 0 for at in owners if (epoch, place) >= at[:2]]
        return min(records, default=None)


@dataclass(eq=False)
class Documents:
    """The documents of one worker.

    Args:
        worker, num_workers: the index of this worker, and the number of all that read the source.
        max_epochs: epochs until the source is exhausted; None for no limit.
        max_skipped: share of an epoch's documents that may be lost, beyond the first 100.
        evaluation: finds the documents that contain an evaluation question, which are left out.
        validation_texts: documents to leave out, whichever source they come from.
    """

    records: Records
    seed: int = 0
    worker: int = 0
    num_workers: int = 1
    max_epochs: int | None = None
    max_skipped: float = 0.05
    evaluation: QuestionFinder | None = None
    validation_texts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.workers = Workers(self.records.num_shards, self.num_workers)
        self.earlier: list[Workers] = []  # the workers of the current epochs before their number changed
        self.position = Position()
        self.documents_read = 0
        self.skipped: Counter[str] = Counter()
        # Losses in this epoch, among all records that were passed and among this worker's own.
        self.seen, self.lost = nothing_lost(), nothing_lost()
        self._last_fault = ""
        self._stream: Iterator[str] | None = None
        self._failure: SourceFailed | None = None

    def read(self, characters: int, count: int = 256) -> list[str]:
        """The next `count` documents, or fewer with `characters` characters in all; none if the source is exhausted.

        Raises:
            SourceFailed: the source cannot be read, too much of it is lost, or it has no document for this worker.
        """
        if self._failure:
            raise self._failure
        texts: list[str] = []
        self._stream = self._stream or self._texts()
        try:
            while len(texts) < count and characters > 0 and (text := next(self._stream, None)) is not None:
                texts.append(text)
                characters -= len(text)
        except SourceFailed as error:
            self._failure = error
            if not texts:  # otherwise the next call raises
                raise
        return texts

    def _texts(self) -> Iterator[str]:
        for value in self._own_records():
            count_record(self.lost, value)
            if value in self.validation_texts:
                value = VALIDATION
            elif isinstance(value, str) and self.evaluation is not None and self.evaluation.covers(value):
                value = EVALUATION
            if isinstance(value, Fault):
                self.skipped[value.reason] += 1
            else:
                self.documents_read += 1
                yield value

    def _own_records(self) -> Iterator[str | Fault]:
        """This worker's records from its position on, which advances with each."""
        empty_epochs, count = 0, self.records.num_shards
        while self.max_epochs is None or self.position.epoch < self.max_epochs:
            (epoch, first, start), documents_before = self.position, self.documents_read
            order = random.Random(f"pieces {self.seed} {epoch}").sample(range(count), count)
            for place in range(first, count):
                yield from self._own_records_of_shard(epoch, place, order[place], start if place == first else 0)
            is_empty = self.documents_read == documents_before and not self.earlier
            empty_epochs = empty_epochs + 1 if is_empty else 0
            if empty_epochs == EMPTY_EPOCHS:  # by chance, other workers may own the few documents of an epoch
                raise SourceFailed(
                    f"{self.records.key}: {self.records.name}: not enough text for its {self.num_workers} workers"
                    f"{skipped_note(self.skipped) or ': the source has no records'}{self._last_fault}"
                )
            self.position, self.seen, self.lost = Position(epoch + 1), nothing_lost(), nothing_lost()
            self.earlier = [workers for workers in self.earlier if max(workers.positions).epoch > epoch]

    def _own_records_of_shard(self, epoch: int, place: int, shard: int, start: int) -> Iterator[str | Fault]:
        shared = place >= self.workers.whole
        if not shared and self.workers.owner(place, 0) != self.worker:
            return
        for workers in self.earlier:
            unread = workers.first_unread(epoch, place)
            if unread is None:
                return
            start = max(start, unread)
        for record, (number, value) in enumerate(self.records.read(shard, epoch, start), start):
            self.position = Position(epoch, place, record + 1)
            count_record(self.seen, value)
            mine = not shared or self.workers.owner(place, record) == self.worker
            if mine and not any(workers.has_read(epoch, place, record) for workers in self.earlier):
                yield value
            if isinstance(value, Fault) and value.reason not in (VALIDATION.reason, LOST.reason):
                self._last_fault = f"; the last is {self.records.locate(shard, number)}: {value}"
                self._check_lost()
        for lost in (self.seen, self.lost):  # losses behind a damaged page count at the end of its file
            lost["unusable"] += lost["behind"]
            lost["behind"] = 0
        self._check_lost()

    def _check_lost(self) -> None:
        if too_many := too_many_lost(self.seen, self.max_skipped):
            raise SourceFailed(
                f"{self.records.key}: {too_many}, more than max_skipped {self.max_skipped:g} allows"
                f"{skipped_note(self.skipped)}{self._last_fault}"
            )

    def state_dict(self) -> DocumentsState:
        """The position of the next `read`, and all counts."""
        return {
            "position": list(self.position),
            "earlier": [[workers.num_workers, [list(at) for at in workers.positions]] for workers in self.earlier],
            "seen": self.seen.copy(),
            **self.counts(),
        }

    def counts(self) -> Counts:
        """The counts that are reported."""
        return {
            "documents_read": self.documents_read,
            "skipped": dict(self.skipped),
            "lost": self.lost.copy(),
        }

    def load_state_dict(self, state: DocumentsState) -> None:
        """Restore the position and counts of `state`."""
        self.position = Position(*state["position"])
        self.earlier = [
            Workers(self.records.num_shards, count, [Position(*at) for at in positions])
            for count, positions in state["earlier"]
        ]
        self.documents_read, self.skipped = state["documents_read"], Counter(state["skipped"])
        self.seen, self.lost = state["seen"].copy(), state["lost"].copy()
        self._stream = None


def redistribute_documents(states: list[DocumentsState], first: bool) -> DocumentsState:
    """The state from which one of a new number of workers resumes, given the states of all former workers.

    Args:
        first: whether it is the one that takes over the counts.
    """
    slowest = min(states, key=lambda state: state["position"])  # the `earlier` of others may omit its epoch
    return {
        "position": [slowest["position"][0], 0, 0],
        "earlier": [*slowest["earlier"], [len(states), [state["position"] for state in states]]],
        "seen": slowest["seen"],
        **sum_counts(states if first else []),
    }


def sum_counts(counts: Sequence[Counts]) -> Counts:
    """The sum of several workers' counts."""
    lost, skipped = nothing_lost(), Counter[str]()
    for one in counts:
        skipped.update(one["skipped"])
        for key in lost:
            lost[key] += one["lost"][key]  # type: ignore[literal-required]
    documents_read = sum(one["documents_read"] for one in counts)
    return {"documents_read": documents_read, "skipped": dict(skipped), "lost": lost}


def nothing_lost() -> LostDocuments:
    """The losses at the start of an epoch."""
    return {"documents": 0, "unusable": 0, "behind": 0, "broken": 0.0}


def count_record(lost: LostDocuments, value: str | Fault) -> None:
    """Count a record. A validation document is not a loss."""
    size = len(value) if isinstance(value, str) else value.size
    documents = max(1, size // DOCUMENT_BYTES)
    lost["documents"] += documents
    if isinstance(value, str) or value.reason == VALIDATION.reason:
        return
    lost["behind" if value.reason == LOST.reason else "unusable"] += documents
    lost["broken"] += value.share


def too_many_lost(lost: LostDocuments, max_skipped: float) -> str | None:
    """Describe the losses if they exceed the limit; otherwise None.

    Args:
        max_skipped: the share of the documents that may be lost beyond the first 100, and the share of the source that
            may be in truncated files.
    """
    if lost["unusable"] > FREE_FAULTS + max_skipped * lost["documents"]:
        return f"{lost['unusable']:,} of an epoch's first {lost['documents']:,} documents cannot be used"
    if lost["broken"] > max_skipped + 1e-9:  # shares are rounded
        return f"truncated files are {lost['broken']:.1%} of the source".replace("%", " %")
    return None


def skipped_note(skipped: Mapping[str, int]) -> str:
    """The number of skipped records by reason, in parentheses."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
    return f" (skipped: {reasons})" if reasons else ""
