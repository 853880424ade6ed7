"""Records of an evaluation, written down as they come, so that a crash costs one batch and nothing is scored twice."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from .questions import Question
from .scorers import Asked, Records

JOURNAL_FILE = "records.unfinished.jsonl"


class Journal:
    """A file with a line for what was asked, and one for each record.

    What it holds is taken over if it was made by the same evaluation; else it is begun anew.
    """

    def __init__(self, folder: Path, evaluation: dict):
        self.file = folder / JOURNAL_FILE
        self.records: dict[int, dict] = {}
        lines = self._whole_lines()
        if lines and lines[0] == {"evaluation": evaluation}:
            self.records = {line.pop("item"): line for line in lines[1:]}
        folder.mkdir(parents=True, exist_ok=True)
        self._write("w", [{"evaluation": evaluation}, *({"item": i, **r} for i, r in self.records.items())])

    def _whole_lines(self) -> list[dict]:
        lines = []
        for text in self.file.read_text().splitlines() if self.file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # cut off by what ended the evaluation
                break
        return lines

    def _write(self, mode: str, lines: list[dict]) -> None:
        with self.file.open(mode) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def add(self, item: int, record: dict) -> None:
        """Write a record down; it outlives this process from here on."""
        self.records[item] = record
        self._write("a", [{"item": item, **record}])

    def collect(
        self,
        scorer: Callable[[Asked, list[Question]], Records],
        asked: Asked,
        questions: list[Question],
        progress: Callable[[Iterable, int], Iterable],
        first: int = 0,
    ) -> list[dict]:
        """A record of each question, in their order; those that are held already are not asked again.

        Args:
            progress: wraps the loop, given the number of records to come.
            first: the number under which the first question is kept.
        """
        todo = [i for i in range(len(questions)) if first + i not in self.records]
        for place, record in progress(scorer(asked, [questions[i] for i in todo]), len(todo)):
            self.add(first + todo[place], record)
        return [self.records[first + i] for i in range(len(questions))]
