"""The mixture: sequences of all sources in exact proportions of tokens, and the position of every worker in it.

Each sequence is drawn from the source whose share is due next (`schedule`): at 45/25/20/10, any 20 consecutive
sequences of a worker hold 9, 5, 4 and 2. Mixing documents instead would favor sources with long documents.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..errors import InputError, RunStopped
from ..medqa.decontamination import QuestionFinder
from ..medqa.questions import Question
from .arguments import fixed_settings, integer_weights, position_settings
from .documents import Documents, Workers, skipped_note, sum_counts, too_many_lost
from .opening import open_sources
from .packing import WINDOW_CHARACTERS, PackedSequences, redistribute_sequences
from .remote import SourceFailed, failures_as_input_errors
from .schedule import Schedule
from .states import Counts, MixtureState, Progress, RankState, TokenSequence, TrainingData
from .tokenizer import DocumentTokenizer
from .validation import outside_sequences, validation_mixture

logger = logging.getLogger(__name__)


class Mixture(TrainingData[MixtureState]):
    """Endless sequences from all sources for one rank, shared by its data-loader workers.

    The schedules of the workers begin at different phases, so that the batches of all ranks at one step are a part of
    one schedule, and so in proportion together.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data = open_sources(self.sources, self.arguments, self.seed)
        self.opened = {one.source.name: one for one in self.data.sources}
        self.tokenize, self.window_characters = DocumentTokenizer(self.tokenizer), WINDOW_CHARACTERS
        self.validation_texts = self.data.validation_texts
        questions = self.data.evaluation_questions
        self.evaluation = QuestionFinder(questions) if questions else None
        if found := self.evaluation:
            self.decontaminated = f"{len(found.questions):,} questions, {found.unchecked} too short to check"
        listings = {name: one.records.listing for name, one in self.opened.items()}
        self.settings = position_settings(fixed_settings(self.arguments, self.tokenizer, self.seed), listings)

    def __iter__(self) -> Iterator[TokenSequence[MixtureState]]:
        info = get_worker_info()
        num_workers = info.num_workers if info else 1
        # The data loader always begins with its first worker, which takes the part of the one whose turn it is.
        worker = ((info.id if info else 0) + self.first_worker) % num_workers
        return self.sequences_of_worker(worker, num_workers, self.position.get(str(worker)))

    def sequences_of_worker(
        self, worker: int = 0, num_workers: int = 1, state: MixtureState | None = None
    ) -> Iterator[TokenSequence[MixtureState]]:
        """Yield the sequences of one worker of this rank, each with the state that follows it.

        Raises:
            SourceFailed: a source can no longer be read, and `on_source_failure` is `stop`.
            RunStopped: no source is left.
        """
        index, count = self.rank * num_workers + worker, self.world_size * num_workers
        packed = {name: self.packed_source(name, index, count) for name in self.names}
        schedule = Schedule(integer_weights(self.sources), (worker * self.world_size + self.rank) * self.batch_size)
        drawn = dict.fromkeys(self.names, 0)
        states = {name: source.state_dict() for name, source in packed.items()}
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
            if (sequence := self._next_sequence(name, packed[name])) is None:
                schedule.drop(name)
                continue
            schedule.draw(name)
            drawn[name] += 1
            states[name] = packed[name].state_dict()
            state = {
                "worker": worker,
                "num_workers": num_workers,
                "settings": self.settings,
                "schedule": schedule.state_dict(),
                "drawn": dict(drawn),
                "sources": dict(states),
            }
            yield {"input_ids": sequence, "source": name, "data_state": state}
        raise RunStopped("sources: no text is left: each source failed or was read max_epochs times")

    def packed_source(self, name: str, worker: int = 0, num_workers: int = 1) -> PackedSequences:
        """The sequences of one source for one worker, by its index among those of all ranks."""
        documents = Documents(
            self.opened[name].records,
            self.seed,
            worker,
            num_workers,
            self.opened[name].source.max_epochs,
            self.arguments.max_skipped,
            self.evaluation,
            self.validation_texts,
        )
        return PackedSequences(documents, self.tokenize, self.sequence_length, self.window_characters)

    def _next_sequence(self, name: str, packed: PackedSequences) -> np.ndarray | None:
        try:
            sequence = packed.next_sequence()
        except SourceFailed as error:
            self._give_up(name, error)
            return None
        if sequence is None:
            logger.warning(
                f"sources.{name} was read max_epochs times; the other sources get its share "
                f"({packed.leftover} remaining tokens do not fill a sequence)"
            )
        return sequence

    def _give_up(self, name: str, error: SourceFailed) -> None:
        if self.arguments.on_source_failure == "stop":
            raise error
        logger.warning(f"sources.{name} failed; the other sources get its share: {error}")

    @failures_as_input_errors()
    def check_workers(self, num_workers: int) -> None:
        """Raise `InputError` if a source has no document for the last worker."""
        count = self.world_size * max(1, num_workers)
        for name in self.names:
            if not self.packed_source(name, count - 1, count).documents.read(1):
                raise InputError(f"sources.{name}: with max_epochs, not every one of {count} workers gets text")

    def validation_sequences(self) -> list[TokenSequence[Any]]:
        """See `TrainingData`."""
        sizes = (self.tokenize, self.sequence_length, self.arguments.validation_sequences)
        return validation_mixture(self.data.sources, *sizes) + outside_sequences(self.data.outside, *sizes)

    def dev_questions(self) -> list[Question]:
        """See `TrainingData`."""
        return [question for one in self.data.sources for question in one.dev]

    def describe(self, tokens: int) -> dict[str, str]:
        """See `TrainingData`; also the epochs of each source, decontamination, files and answers."""
        described = super().describe(tokens)
        for name, one in self.opened.items():
            epochs = float(tokens * one.source.weight) / one.records.tokens_per_epoch(
                self.tokenize, one.validation_texts
            )
            described[f"  {name}"] += f"  about {epochs:,.1f} epochs of {', '.join(one.source.paths)}"
            if one.source.max_epochs is not None and epochs > one.source.max_epochs:
                described[f"  {name}"] += f", capped at {one.source.max_epochs}: the others get the rest"
        return {**described, "decontaminated": self.decontaminated, **self.data.describe()}

    # ---- position ---------------------------------------------------------------------------------------------------

    def progress(self, states: list[MixtureState]) -> dict[str, Progress]:
        """See `TrainingData`.

        Raises:
            SourceFailed: the workers together lost too much of a source, and `on_source_failure` is `stop`.
        """
        num_workers, progress = self.world_size * states[0]["num_workers"], {}
        for name, one in self.opened.items():
            counts = [state["sources"][name]["read"] for state in states]
            # Workers that share all shards record by record see all faults, and check the limit themselves.
            if num_workers > 1 and Workers(one.records.num_shards, num_workers).whole:
                self._check_lost(name, counts)
            progress[name] = Progress(
                sequences=sum(state["drawn"][name] for state in states),
                epochs=min(state["sources"][name]["documents"]["position"][0] for state in states),
                skipped=sum(sum(read["skipped"].values()) for read in counts),
            )
        return progress

    def _check_lost(self, name: str, counts: list[Counts]) -> None:
        total, limit = sum_counts(counts), self.arguments.max_skipped
        if not (too_many := too_many_lost(total["lost"], limit)):
            return
        failed = SourceFailed(
            f"sources.{name}: {too_many}, more than max_skipped {limit:g} allows{skipped_note(total['skipped'])}"
        )
        if self.arguments.on_source_failure == "stop":
            raise failed
        logger.warning(f"{failed}; the source stays in the mixture, because no single worker lost too much")

    def resume(self, ranks: list[RankState[MixtureState]], num_workers: int) -> str | None:
        """Resume from the states of all ranks' workers.

        With the same number of ranks and workers, the run continues with exactly the same sequences. With another
        number, every source continues with its unread documents in another order, and the last window of documents of
        each former worker is read again.

        Raises:
            InputError: the states belong to other sources, or to a recipe that makes other sequences of them.
        """
        state = ranks[0]["workers"][str(ranks[0]["last_worker"])]
        if "settings" not in state:
            raise InputError("pretokenized_dir: the checkpoint was written by a run that read pretokenized sequences")
        for key in {**state["settings"], **self.settings}:
            if state["settings"].get(key) != self.settings.get(key):
                fields = "its weight, format, answer_formats, passages, column, validation_documents or files differ"
                raise InputError(f"{key}: the checkpoint has another value" + f" ({fields})" * ("." in key))
        ranks_before, workers_before = len(ranks), state["num_workers"]
        if (ranks_before, workers_before) == (self.world_size, num_workers):
            mine = ranks[self.rank]
            self.position, self.first_worker = mine["workers"], (mine["last_worker"] + 1) % num_workers
            return None
        self.position, self.first_worker = self._redistribute(ranks, workers_before, num_workers), 0
        return (
            f"the order of documents changes: the checkpoint was written by {ranks_before} rank(s) with "
            f"{workers_before} data worker(s) each, this run has {self.world_size} with {num_workers}. Every source "
            "continues with its unread documents; the last window of each former worker is read again."
        )

    def _redistribute(
        self, ranks: list[RankState[MixtureState]], workers_before: int, num_workers: int
    ) -> dict[str, MixtureState]:
        """A state for each worker of this rank, from the states of all former workers."""
        states = [rank["workers"].get(str(worker)) for rank in ranks for worker in range(workers_before)]
        position: dict[str, MixtureState] = {}
        for worker in range(num_workers):
            first, drawn, sources = self.rank == worker == 0, dict.fromkeys(self.names, 0), {}
            for name in self.names:
                fresh = self.packed_source(name).state_dict()  # for a worker that had not drawn yet
                before = [state["sources"][name] if state else fresh for state in states]
                sources[name] = redistribute_sequences(before, first)
                drawn[name] = sum(state["drawn"][name] for state in states if state and first)
            position[str(worker)] = {
                "worker": worker,
                "num_workers": num_workers,
                "settings": self.settings,
                "schedule": None,
                "drawn": drawn,
                "sources": sources,
            }
        return position


def collate_sequences(sequences: list[TokenSequence[Any]], document_end: int | None = None) -> dict[str, Any]:
    """Stack sequences into a batch: `input_ids` and `labels` are int64 of shape (batch, sequence_length).

    A training batch also has the `source` of each sequence and the `data_state` of the last. There is no attention
    mask: sequences have no padding, and attention can use its causal kernel without one. With a `document_end` token,
    the batch marks its documents in both forms that attention kernels accept: `position_ids` that restart at 0 in each
    document, and the boundaries of documents in the flattened batch (`cu_seq_lens_q` and `_k`, int32 of shape
    (documents + 1,)) with an upper bound on their lengths (`max_length_q` and `_k`).
    """
    input_ids = torch.from_numpy(np.stack([one["input_ids"] for one in sequences])).long()
    batch: dict[str, Any] = {"input_ids": input_ids, "labels": input_ids}
    if document_end is not None:
        batch |= document_boundaries(input_ids, document_end)
    if "data_state" in sequences[-1]:
        batch |= {"source": [one["source"] for one in sequences], "data_state": sequences[-1]["data_state"]}
    return batch


def document_boundaries(input_ids: torch.Tensor, document_end: int) -> dict[str, torch.Tensor | int]:
    """Mark the documents of a batch, which begin with each sequence and after each `document_end`.

    Args:
        input_ids: int64 of shape (batch, sequence_length), as are the `position_ids` of the result.
    """
    starts = torch.ones_like(input_ids, dtype=torch.bool)
    starts[:, 1:] = input_ids[:, :-1] == document_end
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    offsets = torch.cat([starts.flatten().nonzero().flatten(), torch.tensor([input_ids.numel()])]).to(torch.int32)
    longest = input_ids.shape[1]  # the true maximum would recompile layers, because it differs between batches
    return {
        "position_ids": positions - torch.where(starts, positions, 0).cummax(dim=1).values,
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": longest,
        "max_length_k": longest,
    }
