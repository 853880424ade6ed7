"""The mixture: rows of all sources in exact proportion of tokens, and the position of every reader in it.

    documents of a source  ->  packed rows of the source  ->  the mixture  ->  batches
    (documents.py)             (packing.py)                   (here)           (a plain DataLoader)

Each row is drawn from the source whose share is furthest behind, in integers and without a random draw: at 45/25/20/10
any 20 consecutive rows of one reader hold 9, 5, 4 and 2. Mixing documents instead would give the source with the
longest documents most of the tokens.

Every row carries the state that follows it, and every batch that of its last row. So the position of a run is that of
the last batch it trained on, whatever data-loader workers have read ahead.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.questions import Question, read_questions
from ..medqa.splits import select_split
from ..rows import open_rows
from .documents import ExamDocuments, TextDocuments
from .packing import PackedRows
from .sources import Source, integer_weights


class Mixture(IterableDataset):
    """Endless rows from all sources, for one rank; the data loader's workers share the rank's part.

    Args:
        sources: the recipe's sources.
        row_length: tokens of a row.
        grpo_holdout: share of the train questions kept out of pretraining (`medqa.splits`).
        rank, world_size: this process among all that train.
    """

    def __init__(
        self,
        sources: list[Source],
        tokenizer: PreTrainedTokenizerBase,
        row_length: int,
        seed: int = 0,
        grpo_holdout: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.sources = sources
        self.tokenizer = tokenizer
        self.row_length = row_length
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.questions = {
            source.name: training_questions(source, grpo_holdout) for source in sources if source.format == "medqa"
        }
        self.position: dict[str, dict] = {}  # by worker: the state to go on from
        self.first_worker = 0  # the worker whose turn it is when the run goes on

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        num_workers = info.num_workers if info else 1
        # The data loader asks its workers in turn, always beginning with the first: play the worker whose turn it is.
        worker = ((info.id if info else 0) + self.first_worker) % num_workers
        reader, num_readers = self.rank * num_workers + worker, self.world_size * num_workers
        packed = [self.packed_rows(source, reader, num_readers) for source in self.sources]
        schedule = Schedule(integer_weights(self.sources))
        if str(worker) in self.position:
            state = self.position[str(worker)]
            schedule.drawn = list(state["drawn"])
            for source, rows in zip(self.sources, packed, strict=True):
                rows.load_state_dict(state["sources"][source.name])
        while True:
            index = schedule.next_source()
            row = packed[index].next_row()
            states = {source.name: rows.state_dict() for source, rows in zip(self.sources, packed, strict=True)}
            state = {"worker": worker, "num_workers": num_workers, "drawn": list(schedule.drawn), "sources": states}
            yield {"input_ids": row, "data_state": state}

    def documents(self, source: Source, reader: int, num_readers: int) -> TextDocuments | ExamDocuments:
        """The training documents of one source for one of all readers."""
        if source.format == "medqa":
            return ExamDocuments(self.questions[source.name], self.seed, reader, num_readers)
        return TextDocuments(source, partial(training_rows, source), reader, num_readers)

    def packed_rows(self, source: Source, reader: int, num_readers: int) -> PackedRows:
        """The training rows of one source for one of all readers."""
        documents = self.documents(source, reader, num_readers)
        return PackedRows(documents, self.tokenizer, self.row_length, self.seed)

    def check_readers(self, num_workers: int) -> None:
        """Raise `InputError` where a source has no document for the last reader: better now than in a worker later."""
        num_readers = self.world_size * max(1, num_workers)
        for source in self.sources:
            self.documents(source, num_readers - 1, num_readers).read(1)

    def question_tokens(self, name: str) -> int:
        """Tokens of one pass over a medqa source."""
        texts = ExamDocuments(self.questions[name], self.seed).read(len(self.questions[name]))
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return sum(len(encoding.ids) + 1 for encoding in encodings)

    def resume(self, position: dict[str, dict], last_worker: int) -> None:
        """Go on from the states of this rank's workers; `last_worker` gave the last batch that was trained on."""
        num_workers = next(iter(position.values()))["num_workers"]
        self.position, self.first_worker = position, (last_worker + 1) % num_workers


class Schedule:
    """Which source comes next: the one furthest behind its share; the first of equals.

    With integer weights w of sum W and n_i rows drawn of t, that is the largest w_i (t + 1) - W n_i.
    """

    def __init__(self, weights: list[int]):
        self.weights = weights
        self.drawn = [0] * len(weights)

    def next_source(self) -> int:
        """The index of the next source, which is counted as drawn."""
        rows, total = sum(self.drawn) + 1, sum(self.weights)
        deficits = [w * rows - total * n for w, n in zip(self.weights, self.drawn, strict=True)]
        index = deficits.index(max(deficits))
        self.drawn[index] += 1
        return index


def training_rows(source: Source):
    """The rows of a text source that are not held out for validation."""
    rows = open_rows(source.key, source.path, source.config)
    return rows if source.validation_path else rows.skip(source.validation_documents)


def validation_mixture(
    sources: list[Source], tokenizer: PreTrainedTokenizerBase, row_length: int, max_rows: int
) -> list[dict[str, np.ndarray]]:
    """Up to `max_rows` held-out rows in the proportions of the mixture, always the same; no document comes twice.

    Reading them also shows, before training starts, that every source can be read.
    """
    packed = []
    for source in sources:
        if source.format == "medqa":
            documents = ExamDocuments(validation_questions(source), seed=0)
        else:
            documents = TextDocuments(source, partial(validation_rows, source))
        packed.append(PackedRows(documents, tokenizer, row_length, seed=0, window=8))
    schedule, rows = Schedule(integer_weights(sources)), []
    while len(rows) < max_rows:
        index = schedule.next_source()
        row = packed[index].next_row()
        if packed[index].documents.passes:
            break
        rows.append({"input_ids": row})
    if not rows:
        raise InputError(f"sources: the held-out documents do not fill one row of {row_length} tokens for each source")
    return rows


def training_questions(source: Source, grpo_holdout: float) -> list[Question]:
    """The questions of a medqa source that pretraining may read: none of its dev questions, nor a copy of one."""
    questions = select_split(
        read_questions(source.key, source.path, source.config), "train", grpo_holdout=grpo_holdout
    )
    held_out = {question.digest for question in validation_questions(source)}
    return [question for question in questions if question.digest not in held_out]


def validation_questions(source: Source) -> list[Question]:
    """The dev questions of a medqa source."""
    if source.validation_path:
        return read_questions(f"{source.key}.validation_path", source.validation_path)
    questions = select_split(read_questions(source.key, source.path, source.config), "dev")
    if not questions:
        raise InputError(f"{source.key}: '{source.path}' has no dev questions; give it a validation_path")
    return questions


def validation_rows(source: Source):
    """The held-out rows of a text source."""
    if source.validation_path:
        return open_rows(f"{source.key}.validation_path", source.validation_path)
    return open_rows(source.key, source.path, source.config).take(source.validation_documents)


def collate_rows(rows: list[dict], document_end: int | None = None) -> dict:
    """Rows as a batch: `input_ids` and `labels` int64 of shape (batch, row_length), and the last row's `data_state`.

    No attention mask: a row has no padding, and without a mask the causal kernel is used as it is. With a
    `document_end` token the batch has `position_ids` that begin anew after it, which keeps documents apart.
    """
    input_ids = torch.from_numpy(np.stack([row["input_ids"] for row in rows])).long()
    batch = {"input_ids": input_ids, "labels": input_ids}
    if document_end is not None:
        batch["position_ids"] = document_positions(input_ids, document_end)
    return {**batch, "data_state": rows[-1]["data_state"]} if "data_state" in rows[-1] else batch


def document_positions(input_ids: torch.Tensor, document_end: int) -> torch.Tensor:
    """Position of each token in its document, counted from 0 at the row's beginning and after each `document_end`.

    Args:
        input_ids: int64 of shape (batch, row_length); so is the result.
    """
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    starts = torch.zeros_like(input_ids)
    starts[:, 1:] = torch.where(input_ids[:, :-1] == document_end, positions[:, 1:], 0)
    return positions - starts.cummax(dim=1).values
