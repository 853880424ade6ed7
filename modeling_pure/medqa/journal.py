"""Records of an evaluation, written as they come, so that a crash costs one batch and nothing is scored twice."""

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
    """A file with a line for the evaluation, and one for each record, in the order of one process.

    The first process keeps it for all. Its name holds a digest of the evaluation, so that another evaluation in the
    same folder neither uses its records nor loses them.
    """

    def __init__(self, folder: Path, evaluation: dict[str, Any]) -> None:
        head = json.dumps(evaluation, sort_keys=True)
        self.file = folder / f"records-{hashlib.sha256(head.encode()).hexdigest()[:12]}.unfinished.jsonl"
        self.is_kept_here = PartialState().is_main_process
        self.records: dict[int, Record] = self._open(evaluation) if self.is_kept_here else {}
        (self.records,) = broadcast_object_list([self.records])

    def _open(self, evaluation: dict[str, Any]) -> dict[int, Record]:
        """The records in the file, which is rewritten without a line that was cut off."""
        lines: list[Record] = []
        for text in self.file.read_text().split("\n") if self.file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # cut off when the evaluation ended
                break
        kept = [{"evaluation": evaluation}, *lines[1:]]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        return {line.pop("item"): line for line in lines[1:]}

    def add(self, item: int, record: Record) -> None:
        """Write a new record; from here on it outlives this process."""
        if item in self.records:
            return
        self.records[item] = record
        if not self.is_kept_here:
            return
        with self.file.open("a") as file:
            file.write(json.dumps({"item": item, **record}) + "\n")

    def collect(self, batches: Batches, first: int = 0, name: Callable[[int], str] = "row {}".format) -> list[Record]:
        """A record of each question, in their order; batches whose records all exist are not scored again.

        Args:
            first: the number under which the first question is kept.
            name: names a question in a message.

        Raises:
            InputError: the model's log-likelihoods for a question are not finite.
        """
        todo = [batch for batch in batches.indices if any(first + i not in self.records for i in batch)]
        hidden = None if self.is_kept_here else True  # None: without a terminal
        try:
            for i, record in tqdm(batches.records(todo), "scoring", sum(map(len, todo)), disable=hidden):
                self.add(first + i, record)
        except NotFinite as error:
            raise InputError(
                f"model_name_or_path: log-likelihoods for {name(error.index)} are not finite; the weights are damaged"
            ) from error
        return [self.records[first + i] for i in range(sum(map(len, batches.indices)))]
