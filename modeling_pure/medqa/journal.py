"""The records of an evaluation on disk: a crash loses at most one batch, and nothing is scored twice."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..atomic import write_atomically
from ..errors import InputError
from .scorers import Batches, NotFinite, Record


class Journal:
    """A file with a line that describes the evaluation, then a line a record, in the order of a single process.

    The main process writes it for all. Its name holds a digest of the evaluation, so that another evaluation in the
    same folder neither uses these records nor deletes them.
    """

    def __init__(self, folder: Path, evaluation: dict[str, Any]) -> None:
        head = json.dumps(evaluation, sort_keys=True)
        self.file = folder / f"records-{hashlib.sha256(head.encode()).hexdigest()[:12]}.unfinished.jsonl"
        self.is_main = PartialState().is_main_process
        self.records: dict[int, Record] = self._open(evaluation) if self.is_main else {}
        (self.records,) = broadcast_object_list([self.records])

    def _open(self, evaluation: dict[str, Any]) -> dict[int, Record]:
        """Read the records; rewrite the file without a truncated last line."""
        lines: list[Record] = []
        for text in self.file.read_text().split("\n") if self.file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # truncated when the evaluation stopped
                break
        kept = [{"evaluation": evaluation}, *lines[1:]]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        return {line.pop("item"): line for line in lines[1:]}

    def add(self, item: int, record: Record) -> None:
        """Append a record unless it is known."""
        if item in self.records:
            return
        self.records[item] = record
        if self.is_main:
            with self.file.open("a") as file:
                file.write(json.dumps({"item": item, **record}) + "\n")

    def collect(self, batches: Batches, first: int = 0, name: Callable[[int], str] = "row {}".format) -> list[Record]:
        """The records of all questions, in their order; batches whose records all exist are not scored again.

        Args:
            first: index of the first question in the journal.
            name: formats a question's index for error messages.

        Raises:
            InputError: the model's log-likelihoods for a question are not finite.
        """
        todo = [batch for batch in batches.indices if any(first + i not in self.records for i in batch)]
        hidden = None if self.is_main else True  # None hides the bar without a terminal
        try:
            for i, record in tqdm(batches.records(todo), "scoring", sum(map(len, todo)), disable=hidden):
                self.add(first + i, record)
        except NotFinite as error:
            raise InputError(
                f"model_name_or_path: log-likelihoods for {name(error.index)} are not finite; the weights are damaged"
            ) from error
        return [self.records[first + i] for i in range(sum(map(len, batches.indices)))]
