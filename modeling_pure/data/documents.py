"""Documents of one source, pass after pass, with a position that can be saved and taken up again.

Both classes have the same three methods: `read(count)`, `state_dict()` and `load_state_dict(state)`. A reader (one
rank's data-loader worker) keeps every `num_readers`-th document, so readers share a source without overlap or gap,
however many shards it has.
"""

import copy
import random
from collections.abc import Callable, Iterator

from datasets import IterableDataset

from ..errors import InputError, first_line
from ..medqa.prompt import format_answer, format_prompt
from ..medqa.questions import Question
from ..rows import require_columns
from .sources import Source


class TextDocuments:
    """The text column of a streamed data set; `open_rows` opens it anew for every pass."""

    def __init__(
        self, source: Source, open_rows: Callable[[], IterableDataset], reader: int = 0, num_readers: int = 1
    ):
        self.source = source
        self.open_rows = open_rows
        self.reader, self.num_readers = reader, num_readers
        self.passes = 0
        self.index = 0  # rows read in this pass, by all readers
        self.texts = 0  # documents given out in this pass, by this reader
        self.skipped = 0  # rows without text, in all passes
        self._rows: IterableDataset | None = None
        self._rows_state: dict | None = None  # where to open the rows; None = at their beginning
        self._iterator: Iterator[dict] | None = None

    def read(self, count: int) -> list[str]:
        """The next `count` documents; a new pass begins where the data set ends."""
        texts: list[str] = []
        while len(texts) < count:
            row = self._next_row()
            if row is None:
                if self.texts == 0:
                    raise InputError(f"{self.source.key}: '{self.source.path}' has no text for each of its readers")
                self.passes, self.index = self.passes + 1, 0
                self._rows_state = self._iterator = None
                self.texts = 0
                continue
            self.index += 1
            if (self.index - 1) % self.num_readers != self.reader:
                continue
            text = row[self.source.column]
            if isinstance(text, str) and text.strip():
                texts.append(text)
                self.texts += 1
            else:
                self.skipped += 1
        return texts

    def _next_row(self) -> dict | None:
        try:
            if self._iterator is None:
                self._rows = self.open_rows()
                if self._rows_state is not None:
                    self._rows.load_state_dict(copy.deepcopy(self._rows_state))
                # Iterated row by row, `datasets` would by itself share out files to data-loader workers.
                self._iterator = self._rows.iter(batch_size=1)
            row = next(self._iterator, None)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise InputError(
                f"{self.source.key}: cannot read '{self.source.path}' after row {self.index}: {first_line(error)}"
            ) from error
        if row is None:
            return None
        require_columns(self.source.key, self.source.path, row, [self.source.column])
        return {column: values[0] for column, values in row.items()}

    def state_dict(self) -> dict:
        """Where the next `read` begins; JSON can hold it."""
        rows = self._rows_state if self._iterator is None else copy.deepcopy(self._rows.state_dict())
        counts = {"passes": self.passes, "index": self.index, "texts": self.texts, "skipped": self.skipped}
        return {**counts, "rows": rows}

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken."""
        self.passes, self.index = state["passes"], state["index"]
        self.texts, self.skipped = state["texts"], state["skipped"]
        self._rows_state, self._iterator = state["rows"], None


class ExamDocuments:
    """Questions as the exam prompt with its answer, in another order and with other letters at every pass."""

    def __init__(self, questions: list[Question], seed: int, reader: int = 0, num_readers: int = 1):
        if len(questions) < num_readers:
            raise InputError(f"sources: {len(questions)} MedQA questions are left for {num_readers} readers")
        self.questions = questions
        self.seed = seed
        self.reader, self.num_readers = reader, num_readers
        self.passes = 0
        self.index = reader

    def read(self, count: int) -> list[str]:
        """The next `count` documents; a new pass begins where the questions end."""
        texts = []
        while len(texts) < count:
            order = random.Random(f"order {self.seed} {self.passes}").sample(
                range(len(self.questions)), len(self.questions)
            )
            for i in order[self.index :: self.num_readers][: count - len(texts)]:
                rng = random.Random(f"options {self.seed} {self.passes} {i}")
                question = self.questions[i].shuffled(rng)
                texts.append(format_prompt(question) + format_answer(question))
                self.index += self.num_readers
            if self.index >= len(self.questions):
                self.passes, self.index = self.passes + 1, self.reader
        return texts

    def state_dict(self) -> dict:
        """Where the next `read` begins; JSON can hold it."""
        return {"passes": self.passes, "index": self.index}

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken."""
        self.passes, self.index = state["passes"], state["index"]
