"""Documents that hold a question of an evaluation set, found while they stream by.

Vignettes share stock phrases, so that a bare n-gram hit says little: of the 1,273 questions of MedQA's test split, 365
share 13 words in a row with another one. What counts is how much of one question a document covers.

    python -m modeling_pure.data.decontaminate --config RECIPE [--documents 10000] [--report hits.jsonl]

reads the sources of a recipe and reports which of their documents would be dropped. For files without a recipe:
--sources.mine.path 'mine/*.parquet' --sources.mine.weight 1 --decontaminate medqa/dev.jsonl
"""

import re
import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ..medqa.questions import Question

WORD = re.compile(rb"[a-z0-9]+")
GRAM = 13
COVERAGE = 0.5
END_WORDS = 30
TABLE_BITS = 24


@dataclass(frozen=True)
class Match:
    """A question that a document covers: the share of its 13-grams, and the words in a row up to its end."""

    question: Question
    coverage: float
    end_words: int


class Guard:
    """Tells which documents cover a question.

    A document covers a question when it holds at least half of the 13-grams of the question's text (without the
    options; words are runs of ASCII letters and digits, in lower case), or its last 30 words in a row.

    Questions of less than 13 words cannot be checked; `unchecked` counts them.
    """

    def __init__(self, questions: list[Question]):
        unique = {question.digest: question for question in questions}
        self.questions = list(unique.values())
        self.grams: dict[bytes, list[tuple[int, int]]] = defaultdict(list)  # gram -> (question, place in it)
        self.gram_counts = []
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        for index, question in enumerate(self.questions):
            words = words_of(question.question)
            places = range(len(words) - GRAM + 1)
            self.gram_counts.append(len({gram_at(words, place) for place in places}))
            for place in places:
                self.grams[gram_at(words, place)].append((index, place))
            self._table[table_slots(words)] = True
        self.ends = [len(words_of(question.question)) - GRAM for question in self.questions]
        self.unchecked = self.gram_counts.count(0)

    def covers(self, text: str) -> bool:
        """Whether the document holds a question."""
        return self.find(text) is not None

    def find(self, text: str) -> Match | None:
        """The question of which the document holds most, if it covers one."""
        words = words_of(text)
        # Most documents end here: a few array operations a document instead of a look-up for each word.
        candidates = np.flatnonzero(self._table[table_slots(words)])
        if not len(candidates):
            return None
        found: dict[int, dict[bytes, list[int]]] = defaultdict(dict)
        for gram in {gram_at(words, place) for place in candidates.tolist()}:
            for index, place in self.grams.get(gram, ()):
                found[index].setdefault(gram, []).append(place)
        matches = [self._match(index, grams) for index, grams in found.items()]
        covering = [match for match in matches if match.coverage >= COVERAGE or match.end_words >= END_WORDS]
        return max(covering, key=lambda match: (match.coverage, match.end_words), default=None)

    def _match(self, index: int, grams: dict[bytes, list[int]]) -> Match:
        places = {place for found in grams.values() for place in found}
        run = 0
        while self.ends[index] - run in places:
            run += 1
        coverage = len(grams) / self.gram_counts[index]
        return Match(self.questions[index], coverage, run + GRAM - 1 if run else 0)


def words_of(text: str) -> list[bytes]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower().encode("utf-8", "ignore"))


def gram_at(words: list[bytes], place: int) -> bytes:
    """13 words in a row."""
    return b" ".join(words[place : place + GRAM])


def table_slots(words: list[bytes]) -> np.ndarray:
    """A slot of the table for each 13-gram: a polynomial hash of the words' checksums, int64 of shape (grams,)."""
    if len(words) < GRAM:
        return np.empty(0, dtype=np.int64)
    checksums = np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))
    grams = len(words) - GRAM + 1
    hashes = np.zeros(grams, dtype=np.uint64)
    for offset in range(GRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + checksums[offset : offset + grams]
    return (hashes >> np.uint64(64 - TABLE_BITS)).astype(np.int64)
