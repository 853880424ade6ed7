"""Documents of one source, tokenized, joined by the end-of-text token and cut into sequences of equal length.

No token is dropped: what is left of a window of documents after its last full sequence begins the next sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .documents import Documents, redistribute_documents, sum_counts
from .states import PackedSequencesState, WindowState
from .tokenizer import DocumentTokenizer

WINDOW_CHARACTERS = 1_000_000  # at most 0.3 s of tokenizing, which is the cost of resuming a source


@dataclass(eq=False)
class PackedSequences:
    """Sequences of `sequence_length` tokens from one source.

    The state is where the window of documents began that is being cut into sequences, what was left of the one before,
    and how many sequences have been drawn since: resuming costs one window of tokenizing, wherever it was saved.
    """

    documents: Documents
    tokenize: DocumentTokenizer
    sequence_length: int
    window_characters: int = WINDOW_CHARACTERS

    def __post_init__(self) -> None:
        self.tokens_read = 0
        self._tokens = np.empty(0, dtype=np.int32)
        self._begin_window()

    def next_sequence(self) -> np.ndarray | None:
        """The next sequence, int32 of shape (sequence_length,); None when the source is exhausted.

        The end of the last document that does not fill a sequence is then left over (`leftover`).
        """
        while len(self._tokens) < self.sequence_length:
            self._begin_window()
            texts = self.documents.read(self.window_characters)
            if not texts:
                return None
            window = np.concatenate([self._tokens, *self.tokenize(texts)])
            self.tokens_read += len(window) - len(self._tokens)
            self._tokens = window
        sequence, self._tokens = self._tokens[: self.sequence_length], self._tokens[self.sequence_length :]
        self._drawn += 1
        return sequence

    @property
    def leftover(self) -> int:
        """Tokens that have been read and not drawn."""
        return len(self._tokens)

    def state_dict(self) -> PackedSequencesState:
        """Where the next sequence begins, and what has been read so far."""
        return {**self._window_start, "drawn": self._drawn, "read": self.documents.counts()}

    def load_state_dict(self, state: PackedSequencesState) -> None:
        """Continue with the sequence that would have followed `state`."""
        self.documents.load_state_dict(state["documents"])
        self.tokens_read = state["tokens_read"]
        self._tokens = np.array(state["remainder"], dtype=np.int32)
        self._begin_window()
        for _ in range(state["drawn"]):
            self.next_sequence()

    def _begin_window(self) -> None:
        self._window_start: WindowState = {
            "documents": self.documents.state_dict(),
            "tokens_read": self.tokens_read,
            "remainder": self._tokens.tolist(),
        }
        self._drawn = 0


def redistribute_sequences(states: list[PackedSequencesState], first: bool) -> PackedSequencesState:
    """The state in which one of a new number of workers resumes from the states of all workers before.

    Every worker's last window is read again; the `first` one takes over what was left of the windows before.
    """
    taken_over = states if first else []
    documents = redistribute_documents([state["documents"] for state in states], first)
    return {
        "documents": documents,
        "tokens_read": sum(state["tokens_read"] for state in taken_over),
        "remainder": [token for state in taken_over for token in state["remainder"]],
        "drawn": 0,
        "read": sum_counts([documents]),
    }


def pack_in_order(texts: list[str], tokenize: DocumentTokenizer, sequence_length: int) -> Iterator[np.ndarray]:
    """Sequences of the texts in their order; the end of the last one that does not fill a sequence is left out."""
    tokens = np.empty(0, dtype=np.int32)
    for text in texts:
        tokens = np.concatenate([tokens, *tokenize([text])])
        while len(tokens) >= sequence_length:
            sequence, tokens = tokens[:sequence_length], tokens[sequence_length:]
            yield sequence
