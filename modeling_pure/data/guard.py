"""Documents that hold a question of an evaluation set, found while they stream by.

Vignettes share stock phrases, so that a bare n-gram hit says little: of the 1,273 questions of MedQA's test split, 365
share 13 words in a row with another one. What counts is how much of one question a document covers.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from ..medqa.questions import Question

WORD = re.compile(rb"[a-z0-9]+")
GRAM = 13
COVERAGE = 0.5
END_WORDS = 30
TABLE_BITS = 24
TABLE_SHIFT = np.uint64(64 - TABLE_BITS)

# For the hash of words: 1 to 36 for a letter or digit whatever its case, 0 for any other byte.
CODES = 37
CODE_OF_BYTE = np.zeros(256, dtype=np.int16)
for _code, _letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789", 1):
    CODE_OF_BYTE[[ord(_letter), ord(_letter.upper())]] = _code
HASH_OF_PAIR = np.random.default_rng(0).integers(1 << 64, size=CODES * CODES, dtype=np.uint64)
HASH_OF_PAIR[:CODES] = 0  # pairs that begin outside a word
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Held(TypedDict):
    """The best match of a question over all documents: the maximum of each measure, and whether any covers it.

    `coverage` is None if the question is too short to check. `source` and `row` name the document with that coverage.
    """

    coverage: float | None
    end_words: int
    covered: bool
    source: NotRequired[str]
    row: NotRequired[str]


class Coverage(TypedDict):
    """A coverage file: the number of documents read, by source, and the best match of each question, by digest."""

    documents: dict[str, int]
    questions: dict[str, Held]


@dataclass(frozen=True)
class Match:
    """A question and a document: the share of its 13-grams that this holds, and the words in a row up to its end."""

    question: Question
    coverage: float
    end_words: int

    @property
    def covers(self) -> bool:
        """Whether the document holds so much of the question that it is as good as the question."""
        return self.coverage >= COVERAGE or self.end_words >= END_WORDS


class Guard:
    """Tells which documents cover a question.

    A document covers a question when it holds at least half of the 13-grams of the question's text (without the
    options; words are runs of ASCII letters and digits, in lower case), or its last 30 words in a row.

    Questions of less than 13 words cannot be checked; `unchecked` counts them.
    """

    def __init__(self, questions: list[Question]) -> None:
        unique = {question.digest: question for question in questions}
        self.questions = list(unique.values())
        self.grams: dict[bytes, list[tuple[int, int]]] = defaultdict(list)  # gram -> (question, place in it)
        self.gram_counts = []
        for index, question in enumerate(self.questions):
            words = words_of(question.question)
            places = range(len(words) - GRAM + 1)
            self.gram_counts.append(len({gram_at(words, place) for place in places}))
            for place in places:
                self.grams[gram_at(words, place)].append((index, place))
        hashes = [gram_hashes(question.question) for question in self.questions]
        self._hashes = np.unique(np.concatenate(hashes))
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self._table[self._hashes >> TABLE_SHIFT] = True
        self.ends = [len(words_of(question.question)) - GRAM for question in self.questions]
        self.unchecked = self.gram_counts.count(0)

    def covers(self, text: str) -> bool:
        """Whether the document holds a question."""
        return self.find(text) is not None

    def find(self, text: str) -> Match | None:
        """The question of which the document holds most, if it covers one."""
        return most_covering(self.matches(text))

    def matches(self, text: str) -> list[Match]:
        """Every question that shares 13 words in a row with the document."""
        hashes = gram_hashes(text)
        candidates = np.flatnonzero(self._table[hashes >> TABLE_SHIFT])  # a look-up each, and few are left
        places = np.searchsorted(self._hashes[:-1], hashes[candidates])
        candidates = candidates[self._hashes[places] == hashes[candidates]]
        if not len(candidates):
            return []
        words = words_of(text)
        found: dict[int, dict[bytes, list[int]]] = defaultdict(dict)
        for gram in {gram_at(words, place) for place in candidates.tolist()}:
            for index, place in self.grams.get(gram, ()):
                found[index].setdefault(gram, []).append(place)
        return [self._match(index, grams) for index, grams in found.items()]

    def _match(self, index: int, grams: dict[bytes, list[int]]) -> Match:
        places = {place for found in grams.values() for place in found}
        run = 0
        while self.ends[index] - run in places:
            run += 1
        coverage = len(grams) / self.gram_counts[index]
        return Match(self.questions[index], coverage, run + GRAM - 1 if run else 0)


def most_covering(matches: list[Match]) -> Match | None:
    """Of a document's matches the one that covers most, if one covers a question."""
    covering = [match for match in matches if match.covers]
    return max(covering, key=lambda match: (match.coverage, match.end_words), default=None)


def words_of(text: str) -> list[bytes]:
    """The words of a text, in lower case."""
    return WORD.findall(text.encode("utf-8", "ignore").lower())


def gram_at(words: list[bytes], place: int) -> bytes:
    """13 words in a row."""
    return b" ".join(words[place : place + GRAM])


def gram_hashes(text: str) -> np.ndarray:
    """A hash of each 13-gram of a text: uint64 of shape (grams,).

    Array operations over bytes alone, for every document passes through here. A word's hash is the sum of a random
    number for each pair of neighbouring bytes; that of words in a row is a polynomial in those of the words.
    """
    codes = CODE_OF_BYTE[np.frombuffer(text.encode("utf-8", "ignore"), dtype=np.uint8)]
    following = np.append(codes[1:], 0)
    starts = np.flatnonzero((codes > 0) & (np.append(0, codes[:-1]) == 0))
    if len(starts) < GRAM:
        return np.empty(0, dtype=np.uint64)
    hashes = np.add.reduceat(HASH_OF_PAIR[codes * CODES + following], starts)
    pairs = joined(hashes, hashes[1:], 1)
    fours = joined(pairs, pairs[2:], 2)
    eights = joined(fours, fours[4:], 4)
    return joined(joined(eights, fours[8:], 4), hashes[12:], 1)


def joined(left: np.ndarray, right: np.ndarray, words: int) -> np.ndarray:
    """Hashes of the words of `left` followed by the `words` words of `right`."""
    hashes: np.ndarray = left[: len(right)] * MULTIPLIER**words + right
    return hashes
