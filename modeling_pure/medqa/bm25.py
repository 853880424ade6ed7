"""BM25 over a list of documents: English stop words are left out, nothing is stemmed."""

import bm25s
import numpy as np

from ..errors import InputError


def content_words(texts: list[str]) -> list[list[str]]:
    """The words of each text that BM25 looks for, in lower case."""
    words: list[list[str]] = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    return words


class Bm25:
    """An index of documents, scored as Lucene scores them.

    Args:
        key: what the documents came from; the error message names it.

    Raises:
        InputError: the documents hold no word but stop words.
    """

    def __init__(self, key: str, documents: list[str]) -> None:
        words = bm25s.tokenize(documents, stopwords="en", show_progress=False)
        if not any(map(len, words.ids)):
            raise InputError(f"{key}: no words to look for, but for stop words")
        self.number = len(documents)
        self.index = bm25s.BM25(method="lucene")
        self.index.index(words, show_progress=False)

    def scores(self, words: list[str]) -> np.ndarray:
        """BM25 of each document for some words, float32 of shape (documents,); zeros where no word is known."""
        scores: np.ndarray = self.index.get_scores(words) if words else np.zeros(self.number, dtype=np.float32)
        return scores

    def best(self, words: list[str], count: int) -> list[int]:
        """The documents that hold one of the words, best first and equals in their order; at most `count`."""
        scores = self.scores(words)
        count = min(count, len(scores))
        threshold = np.partition(scores, -count)[-count]
        found = np.flatnonzero((scores >= threshold) & (scores > 0))
        ranked: list[int] = found[np.argsort(-scores[found], kind="stable")][:count].tolist()
        return ranked
