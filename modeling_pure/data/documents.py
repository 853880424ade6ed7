"""Documents of one source for one of all readers, pass after pass, from a position that can be saved.

A reader is one data-loader worker of one rank. In every pass the shards of a source come in another order, and the
readers share them: many shards are dealt out whole, and of the others each reader has every `num_readers`-th row.
So each row of a pass belongs to one reader, however few files there are. A position is three integers (pass, shard,
row), and what a reader has read is every row of its share before its position; that also tells, when the number of
readers changes, which rows of the pass are still to be read.
"""

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from .guard import Guard
from .losses import add_losses, add_row, end_shard, no_losses, too_many_lost
from .readers import LOST, Fault
from .remote import SourceFailed
from .source_rows import HELD_OUT, Rows
from .states import Counts, DocumentsState, EpochStart

EVALUATION = Fault("evaluation question")
NO_LOSS = (HELD_OUT.reason, LOST.reason)  # a reason of its own, or counted when its file has been read
MANY_PIECES = 8  # for each reader: shares then differ by their shards' sizes alone
EMPTY_PASSES = 20


class Position(NamedTuple):
    """The row a reader reads next: row `row` of the shard that comes at `place` in pass `epoch`."""

    epoch: int = 0
    place: int = 0
    row: int = 0


class Readers:
    """All readers of a source at one time: who owns which row, and, with their positions, what has been read."""

    def __init__(self, num_shards: int, num_readers: int, positions: list[Position] | None = None) -> None:
        self.num_readers = num_readers
        # Shards that are dealt out whole; the others are shared by rows. Only many of them are about equal shares.
        self.whole = num_shards - num_shards % num_readers if num_shards >= MANY_PIECES * num_readers else 0
        self.positions = positions or []

    def owner(self, place: int, row: int) -> int:
        """The reader of a row of the shard at a place."""
        return (place if place < self.whole else row) % self.num_readers

    def has_read(self, epoch: int, place: int, row: int) -> bool:
        """Whether the row's owner is past it."""
        return (epoch, place, row) < self.positions[self.owner(place, row)]

    def first_unread(self, epoch: int, place: int) -> int | None:
        """A row of the shard at a place before which all have been read; None where the whole shard has."""
        owners = [self.positions[self.owner(place, 0)]] if place < self.whole else self.positions
        rows = [at.row if (epoch, place) == at[:2] else 0 for at in owners if (epoch, place) >= at[:2]]
        return min(rows, default=None)


class Documents:
    """The documents of one reader.

    Args:
        reader, num_readers: which of all readers of the source this is.
        max_epochs: after so many passes the source is exhausted; None for no end.
        max_skipped: share of a pass's documents that may be lost before the source counts as failed; 100 are free.
        guard: leaves out documents that hold an evaluation question.
        held_out: texts that no source may give.
    """

    def __init__(
        self,
        rows: Rows,
        seed: int = 0,
        reader: int = 0,
        num_readers: int = 1,
        max_epochs: int | None = None,
        max_skipped: float = 0.05,
        guard: Guard | None = None,
        held_out: frozenset[str] = frozenset(),
    ) -> None:
        self.rows, self.seed, self.held_out = rows, seed, held_out
        self.reader, self.num_readers = reader, num_readers
        self.max_epochs, self.max_skipped, self.guard = max_epochs, max_skipped, guard
        self.readers = Readers(rows.num_shards, num_readers)
        self.earlier: list[Readers] = []  # those of the same passes before their number changed
        self.position = Position()
        self.rows_read = 0
        self.given = 0  # documents
        self.before_epoch: EpochStart = {"given": 0}
        self.skipped: Counter[str] = Counter()
        self.seen, self.own = no_losses(), no_losses()  # of this pass: among all rows passed, and among those it owns
        self._last_fault = ""
        self._stream: Iterator[str] | None = None
        self._failure: SourceFailed | None = None

    def read(self, characters: int, count: int = 256) -> list[str]:
        """The next `count` documents, fewer once they have so many `characters`; none when the source is exhausted.

        Raises:
            SourceFailed: the source cannot be read, too much of it is unusable, or it holds nothing for this reader.
        """
        if self._failure:
            raise self._failure
        texts: list[str] = []
        while len(texts) < count and characters > 0:
            text = self._next_text()
            if text is None:
                break
            texts.append(text)
            characters -= len(text)
        if self._failure and not texts:
            raise self._failure
        return texts

    def _next_text(self) -> str | None:
        if self._stream is None:
            self._stream = self._texts()
        try:
            return next(self._stream, None)
        except SourceFailed as error:  # what was read before it is still given
            self._failure = error
            return None

    def _texts(self) -> Iterator[str]:
        for value in self._own_rows():
            self.rows_read += 1
            add_row(self.own, value)
            if value in self.held_out:
                value = HELD_OUT
            elif isinstance(value, str) and self.guard is not None and self.guard.covers(value):
                value = EVALUATION
            if isinstance(value, Fault):
                self.skipped[value.reason] += 1
            else:
                self.given += 1
                yield value

    def _own_rows(self) -> Iterator[str | Fault]:
        """This reader's rows from its position on, which moves past each."""
        empty_epochs = 0
        while self.max_epochs is None or self.position.epoch < self.max_epochs:
            epoch, first, start = self.position
            order = random.Random(f"pieces {self.seed} {epoch}").sample(
                range(self.rows.num_shards), self.rows.num_shards
            )
            for place in range(first, len(order)):
                yield from self._own_rows_of_shard(epoch, place, order[place], start if place == first else 0)
            empty_epochs = empty_epochs + 1 if self.given == self.before_epoch["given"] and not self.earlier else 0
            if empty_epochs == EMPTY_PASSES:  # few documents may by chance all be another reader's
                raise SourceFailed(
                    f"{self.rows.key}: {self.rows.name}: no text for each of its {self.num_readers} readers"
                    f"{self._skipped_note() or ': the source has no rows'}{self._last_fault}"
                )
            self.position = Position(epoch + 1)
            self.before_epoch = {"given": self.given}
            self.seen, self.own = no_losses(), no_losses()
            self.earlier = [readers for readers in self.earlier if max(readers.positions).epoch > epoch]

    def _own_rows_of_shard(self, epoch: int, place: int, shard: int, start: int) -> Iterator[str | Fault]:
        shared = place >= self.readers.whole
        if not shared and self.readers.owner(place, 0) != self.reader:
            return
        for readers in self.earlier:
            unread = readers.first_unread(epoch, place)
            if unread is None:
                return
            start = max(start, unread)
        for row, (number, value) in enumerate(self.rows.read(shard, epoch, start), start):
            self.position = Position(epoch, place, row + 1)
            add_row(self.seen, value)
            mine = not shared or self.readers.owner(place, row) == self.reader
            if mine and not any(readers.has_read(epoch, place, row) for readers in self.earlier):
                yield value
            if isinstance(value, Fault) and value.reason not in NO_LOSS:
                self._last_fault = f"; the last is {self.rows.locate(shard, number)}: {value}"
                self._check_losses()
        for losses in (self.seen, self.own):
            end_shard(losses)
        self._check_losses()

    def _check_losses(self) -> None:
        if too_many := too_many_lost(self.seen, self.max_skipped):
            raise SourceFailed(
                f"{self.rows.key}: {too_many}, more than max_skipped {self.max_skipped:g} allows"
                f"{self._skipped_note()}{self._last_fault}"
            )

    def _skipped_note(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
        return f" (skipped: {reasons})" if reasons else ""

    def state_dict(self) -> DocumentsState:
        """Where the next `read` begins and what has been counted; JSON can hold it."""
        return {
            "position": list(self.position),
            "earlier": [[readers.num_readers, [list(at) for at in readers.positions]] for readers in self.earlier],
            "before_epoch": self.before_epoch,
            "seen": self.seen.copy(),
            **self.counts(),
        }

    def counts(self) -> Counts:
        """Rows read, documents given, rows skipped by reason (the latter two add up to the first), and losses."""
        return {
            "rows_read": self.rows_read,
            "given": self.given,
            "skipped": dict(self.skipped),
            "losses": self.own.copy(),
        }

    def load_state_dict(self, state: DocumentsState) -> None:
        """Continue where `state` was taken."""
        self.position = Position(*state["position"])
        self.earlier = [
            Readers(self.rows.num_shards, count, [Position(*at) for at in positions])
            for count, positions in state["earlier"]
        ]
        self.rows_read, self.given = state["rows_read"], state["given"]
        self.before_epoch = state["before_epoch"]
        self.skipped = Counter(state["skipped"])
        self.seen, self.own = (state.get("seen") or no_losses()).copy(), (state.get("losses") or no_losses()).copy()
        self._stream = None


def redistribute_documents(states: list[DocumentsState], first: bool) -> DocumentsState:
    """The state with which one of a new number of readers goes on from the states of all readers before.

    Args:
        first: for one reader, which takes over the counts.
    """
    positions = [state["position"] for state in states]
    slowest = min(states, key=lambda state: state["position"])  # the others may have forgotten what it still needs
    counted = states if first else []
    skipped: Counter[str] = sum((Counter(state["skipped"]) for state in counted), Counter())
    rows_read, given = sum(state["rows_read"] for state in counted), sum(state["given"] for state in counted)
    return {
        "position": [slowest["position"][0], 0, 0],
        "earlier": [*slowest["earlier"], [len(states), positions]],
        "rows_read": rows_read,
        "given": given,
        "before_epoch": {"given": given},
        "skipped": dict(skipped),
        "seen": slowest.get("seen") or no_losses(),
        "losses": add_losses([state["losses"] for state in counted if "losses" in state]),
    }
