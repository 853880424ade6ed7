"""The mixture: rows of all sources in exact proportion of tokens, and the position of every reader in it.

    shards of files -> documents of a reader -> packed rows of a source -> the mixture -> batches
    (files, readers)   (documents)              (packing)                  (here)        (a plain DataLoader)

Each row is drawn from the source whose share is due next (`schedule`): at 45/25/20/10 any 20 consecutive rows of one
reader hold 9, 5, 4 and 2. Mixing documents instead would give the source with the longest documents most tokens.

Every row carries the state that follows it, and every batch that of its last row. So the position of a run is that of
the last batch it trained on, whatever data-loader workers have read ahead.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, RunStopped
from .arguments import DataArguments
from .documents import Documents, Readers
from .held_out import OpenSource, evaluation_guard, held_out_texts
from .losses import add_losses, too_many_lost
from .packing import WINDOW_CHARACTERS, PackedSequences, redistribute_rows
from .remote import SourceFailed
from .schedule import Schedule
from .sources import Source, integer_weights
from .states import Counts, MixtureState, PackedSequencesState, Progress, RankState, TokenSequence, TrainingData
from .tokenizer import DocumentTokenizer

logger = logging.getLogger(__name__)


class Mixture(TrainingData[MixtureState]):
    """Endless rows from all sources, for one rank; the data loader's workers share the rank's part.

    Each item has `input_ids`, int32 of shape (max_seq_length,), the name of its `source`, and `data_state`, which JSON
    can hold.

    Args:
        opened: the recipe's sources.
        batch_size: rows of a rank's batch. Readers begin their schedules so far apart that the batches of all ranks
            at one time are a stretch of one and the same schedule, and so in proportion together.
        rank, world_size: this process among all that train.
    """

    def __init__(
        self,
        opened: list[OpenSource],
        tokenizer: PreTrainedTokenizerBase,
        arguments: DataArguments,
        seed: int = 0,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.opened = opened
        self.sources = [one.source for one in opened]
        self.tokenizer = tokenizer
        self.tokenize = DocumentTokenizer(tokenizer)
        self.arguments = arguments
        self.sequence_length = arguments.max_seq_length
        self.seed, self.batch_size = seed, batch_size
        self.rank, self.world_size = rank, world_size
        self.window_characters = WINDOW_CHARACTERS
        self.guard = evaluation_guard(opened, arguments)
        self.held_out = held_out_texts(opened)
        self.names = [source.name for source in self.sources]
        self.settings = self._settings()
        self.position, self.first_worker = {}, 0

    def __iter__(self) -> Iterator[TokenSequence[MixtureState]]:
        info = get_worker_info()
        num_workers = info.num_workers if info else 1
        # The data loader asks its workers in turn, always beginning with the first: play the worker whose turn it is.
        worker = ((info.id if info else 0) + self.first_worker) % num_workers
        return self.rows_of_reader(worker, num_workers, self.position.get(str(worker)))

    def rows_of_reader(
        self, worker: int = 0, num_workers: int = 1, state: MixtureState | None = None
    ) -> Iterator[TokenSequence[MixtureState]]:
        """The rows of one worker of this rank, each with the state that follows it.

        Raises:
            SourceFailed: a source cannot be read any more and `on_source_failure` is `stop`.
            RunStopped: no source is left.
        """
        reader, num_readers = self.rank * num_workers + worker, self.world_size * num_workers
        packed = {name: self.packed_rows(name, reader, num_readers) for name in self.names}
        schedule = Schedule(integer_weights(self.sources), (worker * self.world_size + self.rank) * self.batch_size)
        drawn = dict.fromkeys(self.names, 0)
        states = {name: rows.state_dict() for name, rows in packed.items()}
        if state:
            if state["schedule"] is not None:
                schedule.load_state_dict(state["schedule"])
            drawn, states = dict(state["drawn"]), dict(state["sources"])
            for name in list(schedule.weights):
                try:
                    packed[name].load_state_dict(states[name])
                except SourceFailed as error:
                    self._give_up(name, error)
                    schedule.drop(name)
        while schedule.weights:
            name = schedule.next_source()
            row = self._next_row(name, packed[name])
            if row is None:
                schedule.drop(name)
                continue
            schedule.draw(name)
            drawn[name] += 1
            states[name] = packed[name].state_dict()
            state = self._state(worker, num_workers, dict(drawn), dict(states), schedule.state_dict())
            yield {"input_ids": row, "source": name, "data_state": state}
        raise RunStopped("sources: all have been read max_epochs times or have failed; nothing is left to train on")

    def hold_out(self, documents: list[tuple[Source, list[str]]]) -> None:
        """Train on no copy of these texts (`outside_documents`) either."""
        self.held_out |= {text for _, texts in documents for text in texts}

    def _settings(self) -> dict[str, int | str]:
        """What a position depends on, by recipe key: it means nothing where these differ."""
        fixed: dict[str, int | str] = {"seed": self.seed, "max_seq_length": self.sequence_length}
        fixed["tokenizer_name_or_path"] = digest(self.tokenizer.backend_tokenizer.to_str())
        for one in self.opened:
            source = one.source
            facts = (source.weight, source.format, source.column, source.validation_documents, one.rows.listing)
            fixed[source.key] = digest(*facts, source.answer_formats, source.passages_share)
        return fixed

    def _state(
        self,
        worker: int,
        num_workers: int,
        drawn: dict[str, int],
        sources: dict[str, PackedSequencesState],
        schedule: dict[str, int] | None = None,
    ) -> MixtureState:
        return {
            "worker": worker,
            "num_workers": num_workers,
            "settings": self.settings,
            "schedule": schedule,
            "drawn": drawn,
            "sources": sources,
        }

    def _next_row(self, name: str, packed: PackedSequences) -> np.ndarray | None:
        try:
            row = packed.next_row()
        except SourceFailed as error:
            self._give_up(name, error)
            return None
        if row is None:
            logger.warning(
                f"sources.{name} has been read max_epochs times; the other sources get its share "
                f"({packed.leftover} tokens that fill no row are left over)"
            )
        return row

    def _give_up(self, name: str, error: SourceFailed) -> None:
        if self.arguments.on_source_failure == "stop":
            raise error
        logger.warning(f"sources.{name} has failed, and the other sources get its share: {error}")

    def packed_rows(self, name: str, reader: int = 0, num_readers: int = 1) -> PackedSequences:
        """The rows of one source for one of all readers."""
        one = next(one for one in self.opened if one.source.name == name)
        documents = Documents(
            one.rows,
            self.seed,
            reader,
            num_readers,
            one.source.max_epochs,
            self.arguments.max_skipped,
            self.guard,
            self.held_out,
        )
        return PackedSequences(documents, self.tokenize, self.sequence_length, self.window_characters)

    def progress(self, states: list[MixtureState]) -> dict[str, Progress]:
        """By source, the rows drawn, passes completed and rows skipped in all, from the states of all readers.

        Raises:
            SourceFailed: all readers together have lost too much of a source, and `on_source_failure` is `stop`.
        """
        for one in self.opened:
            name, num_readers = one.source.name, self.world_size * states[0]["num_workers"]
            # Readers that share every shard row by row see all faults, and each stops by itself.
            if num_readers > 1 and Readers(one.rows.num_shards, num_readers).whole:
                self._check_losses(name, [state["sources"][name]["read"] for state in states])
        return {
            name: {
                "rows": sum(state["drawn"][name] for state in states),
                "epochs": min(state["sources"][name]["documents"]["position"][0] for state in states),
                "skipped": sum(sum(state["sources"][name]["read"]["skipped"].values()) for state in states),
            }
            for name in self.names
        }

    def _check_losses(self, name: str, counts: list[Counts]) -> None:
        losses = add_losses([read["losses"] for read in counts if "losses" in read])
        too_many = too_many_lost(losses, self.arguments.max_skipped)
        if not too_many:
            return
        skipped: Counter[str] = sum((Counter(read["skipped"]) for read in counts), Counter())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        failed = SourceFailed(
            f"sources.{name}: {too_many}, more than max_skipped {self.arguments.max_skipped:g} allows (skipped by "
            f"all readers: {reasons})"
        )
        if self.arguments.on_source_failure == "stop":
            raise failed
        logger.warning(f"{failed}; no reader alone has lost too much, so the source stays in the mixture")

    def check_readers(self, num_workers: int) -> None:
        """Raise `InputError` where a source has no document for the last reader: better now than in a worker later."""
        num_readers = self.world_size * max(1, num_workers)
        for name in self.names:
            documents = self.packed_rows(name, num_readers - 1, num_readers).documents
            try:
                texts = documents.read(1)
            except SourceFailed as error:
                raise InputError(str(error)) from error
            if not texts:
                raise InputError(f"sources.{name}: max_epochs leaves no text for each of {num_readers} readers")

    def resume(self, ranks: list[RankState[MixtureState]], num_workers: int) -> str | None:
        """Go on from the states of all ranks' workers.

        With as many ranks and workers as wrote them, the same rows follow as if the run had not stopped. With other
        numbers every source goes on after the documents that have been read, but in another order; each former
        reader's last window of documents is read once more.

        Args:
            ranks: for each, `workers` (by number: the state of the last row trained on) and `last_worker`.
            num_workers: data-loader workers of this run, at least 1.

        Returns:
            What changes, for the user; None where nothing does.

        Raises:
            InputError: the states are of other sources, or of a recipe that makes other rows of them.
        """
        state = ranks[0]["workers"][str(ranks[0]["last_worker"])]
        if "settings" not in state:
            raise InputError("pretokenized_dir: the checkpoint was written by a run that read packed rows")
        for key in {**state["settings"], **self.settings}:
            if state["settings"].get(key) != self.settings.get(key):
                what = (
                    " (its weight, format, answer_formats, passages, column, validation_documents or files differ)"
                    if "." in key
                    else ""
                )
                raise InputError(f"{key}: the checkpoint was written with another one{what}")
        before = (len(ranks), state["num_workers"])
        if before == (self.world_size, num_workers):
            mine = ranks[self.rank]
            self.position, self.first_worker = mine["workers"], (mine["last_worker"] + 1) % num_workers
            return None
        self.position, self.first_worker = self._redistribute(ranks, before[1], num_workers), 0
        return (
            f"the order of documents changes from here on: {before[0]} rank(s) with {before[1]} data worker(s) each "
            f"wrote the checkpoint, this run has {self.world_size} with {num_workers}. Every source goes on where it "
            "was; at most the last window of documents of each former reader comes once more."
        )

    def _redistribute(
        self, ranks: list[RankState[MixtureState]], workers_before: int, num_workers: int
    ) -> dict[str, MixtureState]:
        """A state for each worker of this rank, from those of all workers of all ranks before."""
        fresh = {name: self.packed_rows(name).state_dict() for name in self.names}
        # Of a worker that had no turn yet.
        unread = self._state(0, workers_before, dict.fromkeys(self.names, 0), fresh)
        before = [rank["workers"].get(str(worker), unread) for rank in ranks for worker in range(workers_before)]
        position = {}
        for worker in range(num_workers):
            first = self.rank == worker == 0
            sources = {n: redistribute_rows([state["sources"][n] for state in before], first) for n in self.names}
            drawn = {n: sum(state["drawn"][n] for state in before) if first else 0 for n in self.names}
            position[str(worker)] = self._state(worker, num_workers, drawn, sources)
        return position


def digest(*facts: object) -> str:
    """A short hash of facts."""
    return hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()[:16]


def collate_sequences(rows: list[TokenSequence[Any]], document_end: int | None = None) -> dict[str, Any]:
    """Rows as a batch: `input_ids` and `labels` int64 of shape (batch, sequence_length).

    In training, the batch also has each row's `source` and the last row's `data_state`. There is no attention mask: a
    row has no padding, and without a mask attention can use its causal kernel. With a `document_end` token, the batch
    marks the documents in both forms that attention kernels accept: `position_ids` that restart at 0 in each document,
    and the boundaries of all documents in the flattened batch (`cu_seq_lens_q` and `_k`, int32 of shape
    (documents + 1,)) with an upper bound on their lengths (`max_length_q` and `_k`).
    """
    input_ids = torch.from_numpy(np.stack([row["input_ids"] for row in rows])).long()
    batch: dict[str, Any] = {"input_ids": input_ids, "labels": input_ids}
    if document_end is not None:
        batch |= document_boundaries(input_ids, document_end)
    if "data_state" in rows[-1]:
        batch |= {"source": [row["source"] for row in rows], "data_state": rows[-1]["data_state"]}
    return batch


def document_boundaries(input_ids: torch.Tensor, document_end: int) -> dict[str, torch.Tensor | int]:
    """Where documents begin: at the beginning of each row and after each `document_end`.

    Args:
        input_ids: int64 of shape (batch, sequence_length); so are the `position_ids`, counted from 0 in each document.
    """
    starts = torch.ones_like(input_ids, dtype=torch.bool)
    starts[:, 1:] = input_ids[:, :-1] == document_end
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    offsets = torch.cat([starts.flatten().nonzero().flatten(), torch.tensor([input_ids.numel()])]).to(torch.int32)
    longest = input_ids.shape[1]  # the true maximum differs between batches, and compiled layers guard on it
    return {
        "position_ids": positions - torch.where(starts, positions, 0).cummax(dim=1).values,
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": longest,
        "max_length_k": longest,
    }
