"""Records of an evaluation, written down as they come, so that a crash costs one batch and nothing is scored twice."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..atomic import write_atomically
from ..errors import InputError
from .asked import Asked, Batches, Item, NotFinite, Record
from .questions import Question

Progress = Callable[[Iterable[Item], int], Iterable[Item]]  # wraps an iterable of known length


class Journal:
    """A file with a line for what was asked, and one for each record, in the order of one process.

    The first process keeps it for all. Its name holds a digest of the evaluation, so that another one in the same
    folder neither takes its records over nor loses them.
    """

    def __init__(self, folder: Path, evaluation: dict[str, Any]) -> None:
        head = json.dumps(evaluation, sort_keys=True)
        self.file = folder / f"records-{hashlib.sha256(head.encode()).hexdigest()[:12]}.unfinished.jsonl"
        self.is_kept_here = PartialState().is_main_process
        self.records: dict[int, Record] = self._open(evaluation) if self.is_kept_here else {}
        (self.records,) = broadcast_object_list([self.records])

    def _open(self, evaluation: dict[str, Any]) -> dict[int, Record]:
        """The records that the file holds, which is written again without a line that was cut off."""
        records = {line.pop("item"): line for line in self._whole_lines()[1:]}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = [{"evaluation": evaluation}, *({"item": i, **record} for i, record in records.items())]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        return records

    def _whole_lines(self) -> list[Record]:
        lines: list[Record] = []
        for text in self.file.read_text().split("\n") if self.file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # cut off by what ended the evaluation
                break
        return lines

    def add(self, item: int, record: Record) -> None:
        """Write a record down, unless it is held; it outlives this process from here on."""
        if item in self.records:
            return
        self.records[item] = record
        if not self.is_kept_here:
            return
        with self.file.open("a") as file:
            file.write(json.dumps({"item": item, **record}) + "\n")

    def collect(
        self,
        scorer: Callable[[Asked, list[Question]], Batches],
        asked: Asked,
        questions: list[Question],
        progress: Progress,
        first: int = 0,
        name: Callable[[int], str] = "row {}".format,
    ) -> list[Record]:
        """A record of each question, in their order; batches whose records are all held are not asked again.

        Args:
            progress: wraps the loop, given the number of records to come.
            first: the number under which the first question is kept.
            name: what a question is called in a message.

        Raises:
            InputError: the model's numbers for a question are none.
        """
        batches = scorer(asked, questions)
        todo = [batch for batch in batches.indices if any(first + i not in self.records for i in batch)]
        try:
            for i, record in progress(batches.records(todo), sum(map(len, todo))):
                self.add(first + i, record)
        except NotFinite as error:
            raise InputError(
                f"model_name_or_path: log-likelihoods for {name(error.index)} are not finite; the weights are damaged"
            ) from error
        return [self.records[first + i] for i in range(len(questions))]
