"""Tokenize the documents of one source, join them with the end-of-text token, and cut sequences of equal length.

No token is dropped: the tokens of a window after its last full sequence begin the next sequence.
"""

from dataclasses import dataclass

import numpy as np

from .documents import Documents, redistribute_documents, sum_counts
from .states import PackedSequencesState, WindowState
from .tokenizer import DocumentTokenizer

WINDOW_CHARACTERS = 1_000_000  # tokenized again when a source resumes: at most 0.3 s


@dataclass(eq=False)
class PackedSequences:
    """Sequences of `sequence_length` tokens from one source.

    The state holds the start of the current window of documents, the tokens left over from the one before, and the
    number of sequences drawn since. So resuming tokenizes one window again.
    """

    documents: Documents
    tokenize: DocumentTokenizer
    sequence_length: int
    window_characters: int = WINDOW_CHARACTERS

    def __post_init__(self) -> None:
        self._tokens = np.empty(0, dtype=np.int32)
        self._begin_window()

    def next_sequence(self) -> np.ndarray | None:
        """The next sequence, int32 of shape (sequence_length,); None when the source is exhausted.

        The tokens of the last documents that do not fill a sequence then remain (`leftover`).
        """
        while len(self._tokens) < self.sequence_length:
            self._begin_window()
            texts = self.documents.read(self.window_characters)
            if not texts:
                return None
            self._tokens = np.concatenate([self._tokens, *self.tokenize(texts)])
        sequence, self._tokens = self._tokens[: self.sequence_length], self._tokens[self.sequence_length :]
        self._drawn += 1
        return sequence

    @property
    def leftover(self) -> int:
        """Number of tokens that have been read but not drawn."""
        return len(self._tokens)

    def state_dict(self) -> PackedSequencesState:
        """The position of the next sequence, and what has been read so far."""
        return {**self._window_start, "drawn": self._drawn, "read": self.documents.counts()}

    def load_state_dict(self, state: PackedSequencesState) -> None:
        """Continue with the sequence that follows `state`."""
        self.documents.load_state_dict(state["documents"])
        self._tokens = np.array(state["remainder"], dtype=np.int32)
        self._begin_window()
        for _ in range(state["drawn"]):
            self.next_sequence()

    def _begin_window(self) -> None:
        documents = self.documents.state_dict()
        self._window_start: WindowState = {"documents": documents, "remainder": self._tokens.tolist()}
        self._drawn = 0


def redistribute_sequences(states: list[PackedSequencesState], first: bool) -> PackedSequencesState:
    """The state from which one of a new number of workers resumes, given the states of all former workers.

    The last window of every former worker is read again; the `first` new worker takes over the tokens left over.
    """
    documents = redistribute_documents([state["documents"] for state in states], first)
    return {
        "documents": documents,
        "remainder": [token for state in (states if first else []) for token in state["remainder"]],
        "drawn": 0,
        "read": sum_counts([documents]),
    }


def pack_in_order(texts: list[str], tokenize: DocumentTokenizer, sequence_length: int) -> np.ndarray:
    """Sequences of the texts in order, of shape (sequences, sequence_length); the remaining tokens are dropped."""
    tokens = np.concatenate(tokenize(texts))
    return tokens[: len(tokens) // sequence_length * sequence_length].reshape(-1, sequence_length)
