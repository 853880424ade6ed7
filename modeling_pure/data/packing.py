"""Documents of one source, tokenised, joined by the end-of-text token and cut into rows of equal length.

No token is thrown away: what is left of a window of documents after its last full row begins the next row.
"""

from collections.abc import Iterator

import numpy as np

from .documents import Documents, redistribute_documents
from .states import PackedSequencesState, WindowState
from .tokenizer import DocumentTokenizer

WINDOW_CHARACTERS = 1_000_000  # at most 0.3 s of tokenising, which is what going on from a state costs a source


class PackedSequences:
    """Rows of `sequence_length` tokens from one source.

    The state is where the window of documents began that is being cut into rows, what was left of the one before, and
    how many rows have been drawn since: going on from it costs one window of tokenising, wherever it was taken.
    """

    def __init__(
        self,
        documents: Documents,
        tokenize: DocumentTokenizer,
        sequence_length: int,
        window_characters: int,
    ) -> None:
        self.documents, self.tokenize = documents, tokenize
        self.sequence_length, self.window_characters = sequence_length, window_characters
        self.tokens_read = 0
        self._tokens = np.empty(0, dtype=np.int32)
        self._begin_window()

    def next_row(self) -> np.ndarray | None:
        """The next row, int32 of shape (sequence_length,); None when the source is exhausted.

        Then less than a row is left over (`leftover`), which is the end of the last document.
        """
        while len(self._tokens) < self.sequence_length:
            self._begin_window()
            texts = self.documents.read(self.window_characters)
            if not texts:
                return None
            window = np.concatenate([self._tokens, *self.tokenize(texts)])
            self.tokens_read += len(window) - len(self._tokens)
            self._tokens = window
        row, self._tokens = self._tokens[: self.sequence_length], self._tokens[self.sequence_length :]
        self._drawn += 1
        return row

    @property
    def leftover(self) -> int:
        """Tokens that have been read and not drawn."""
        return len(self._tokens)

    def state_dict(self) -> PackedSequencesState:
        """Where the next row begins, and what has been read so far; JSON can hold it."""
        return {**self._window_start, "drawn": self._drawn, "read": self.documents.counts()}

    def load_state_dict(self, state: PackedSequencesState) -> None:
        """Continue with the row that would have followed `state`."""
        self.documents.load_state_dict(state["documents"])
        self.tokens_read = state["tokens_read"]
        self._tokens = np.array(state["remainder"], dtype=np.int32)
        self._begin_window()
        for _ in range(state["drawn"]):
            self.next_row()

    def _begin_window(self) -> None:
        self._window_start: WindowState = {
            "documents": self.documents.state_dict(),
            "tokens_read": self.tokens_read,
            "remainder": self._tokens.tolist(),
        }
        self._drawn = 0


def redistribute_rows(states: list[PackedSequencesState], first: bool) -> PackedSequencesState:
    """The state with which one of a new number of readers goes on from the states of all readers before.

    Every reader's last window is read again; the `first` one takes over what was left of the windows before.
    """
    documents = redistribute_documents([state["documents"] for state in states], first)
    return {
        "documents": documents,
        "tokens_read": sum(state["tokens_read"] for state in states) if first else 0,
        "remainder": [token for state in states for token in state["remainder"]] if first else [],
        "drawn": 0,
        "read": {"rows_read": documents["rows_read"], "given": documents["given"], "skipped": documents["skipped"]},
    }


def pack_in_order(texts: Iterator[str], tokenize: DocumentTokenizer, sequence_length: int) -> Iterator[np.ndarray]:
    """Rows of the texts as they come; the end of the last one that does not fill a row is left out."""
    tokens = np.empty(0, dtype=np.int32)
    for text in texts:
        tokens = np.concatenate([tokens, *tokenize([text])])
        while len(tokens) >= sequence_length:
            row, tokens = tokens[:sequence_length], tokens[sequence_length:]
            yield row
