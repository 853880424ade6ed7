"""Records of an evaluation, written down as they come, so that a crash costs one batch and nothing is scored twice."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..errors import InputError
from .asked import Asked, NotFinite, Record, Records
from .questions import Question

Item = tuple[int, Record]
Progress = Callable[[Iterable[Item], int], Iterable[Item]]  # wraps an iterable of known length


class Journal:
    """A file with a line for what was asked, and one for each record.

    Its name holds a digest of the evaluation, so that another one in the same folder neither takes its records over
    nor loses them.
    """

    def __init__(self, folder: Path, evaluation: dict[str, Any]) -> None:
        head = json.dumps(evaluation, sort_keys=True)
        self.file = folder / f"records-{hashlib.sha256(head.encode()).hexdigest()[:12]}.unfinished.jsonl"
        lines = self._whole_lines()
        self.records: dict[int, Record] = {line.pop("item"): line for line in lines[1:]}
        folder.mkdir(parents=True, exist_ok=True)
        kept = [{"evaluation": evaluation}, *({"item": i, **record} for i, record in self.records.items())]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))

    def _whole_lines(self) -> list[Record]:
        lines: list[Record] = []
        for text in self.file.read_text().split("\n") if self.file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # cut off by what ended the evaluation
                break
        return lines

    def add(self, item: int, record: Record) -> None:
        """Write a record down; it outlives this process from here on."""
        self.records[item] = record
        with self.file.open("a") as file:
            file.write(json.dumps({"item": item, **record}) + "\n")

    def collect(
        self,
        scorer: Callable[[Asked, list[Question]], Records],
        asked: Asked,
        questions: list[Question],
        progress: Progress,
        first: int = 0,
        name: Callable[[int], str] = "row {}".format,
    ) -> list[Record]:
        """A record of each question, in their order; those that are held already are not asked again.

        Args:
            progress: wraps the loop, given the number of records to come.
            first: the number under which the first question is kept.
            name: what a question is called in a message.

        Raises:
            InputError: the model's numbers for a question are none.
        """
        todo = [i for i in range(len(questions)) if first + i not in self.records]
        try:
            for place, record in progress(scorer(asked, [questions[i] for i in todo]), len(todo)):
                self.add(first + todo[place], record)
        except NotFinite as error:
            raise InputError(
                f"model_name_or_path: log-likelihoods for {name(todo[error.index])} are not finite; "
                "the weights are damaged"
            ) from error
        return [self.records[first + i] for i in range(len(questions))]
