"""Documents of one source, tokenised, joined by the end-of-text token and cut into rows of equal length.

No token is thrown away: what is left of a window of documents after its last full row begins the next row.
"""

import random

import numpy as np
from transformers import PreTrainedTokenizerBase

from .documents import ExamDocuments, TextDocuments


class PackedRows:
    """Endless rows of `row_length` tokens from one source.

    Documents are taken in windows, shuffled within the window and tokenised together (the Rust tokenizer is several
    times faster on a batch). The state is where the window began and how many rows have been drawn since: going on
    from it costs one window of tokenising, wherever in the run it was taken.
    """

    def __init__(
        self,
        documents: TextDocuments | ExamDocuments,
        tokenizer: PreTrainedTokenizerBase,
        row_length: int,
        seed: int,
        window: int = 256,
    ):
        self.documents = documents
        self.tokenizer = tokenizer
        self.row_length = row_length
        self.seed = seed
        self.window = window
        self._tokens = np.empty(0, dtype=np.int32)
        self._begin_window()

    def next_row(self) -> np.ndarray:
        """The next row: int32 of shape (row_length,)."""
        while len(self._tokens) < self.row_length:
            self._read_window()
        row, self._tokens = self._tokens[: self.row_length], self._tokens[self.row_length :]
        self._rows += 1
        return row

    def state_dict(self) -> dict:
        """Where the next row begins; JSON can hold it."""
        return {**self._window_start, "rows": self._rows}

    def load_state_dict(self, state: dict) -> None:
        """Continue with the row that would have followed `state`."""
        self.documents.load_state_dict(state["documents"])
        self._tokens = np.array(state["remainder"], dtype=np.int32)
        self._begin_window()
        for _ in range(state["rows"]):
            self.next_row()

    def _begin_window(self) -> None:
        self._window_start = {"documents": self.documents.state_dict(), "remainder": self._tokens.tolist()}
        self._rows = 0

    def _read_window(self) -> None:
        self._begin_window()
        start = self._window_start["documents"]
        texts = self.documents.read(self.window)
        random.Random(f"window {self.seed} {start['passes']} {start['index']}").shuffle(texts)
        pieces = [self._tokens]
        for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            pieces.append(np.array([*encoding.ids, self.tokenizer.eos_token_id], dtype=np.int32))
        self._tokens = np.concatenate(pieces)
