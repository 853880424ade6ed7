"""Decontamination: find documents that hold a question of an evaluation set, while they are streamed.

Vignettes share stock phrases, so a single n-gram in common says little: of the 1,273 questions of MedQA's test split,
365 share 13 consecutive words with another one. The criterion is how much of one question a document covers.
"""

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from .questions import Question

WORD = re.compile(rb"[a-z0-9\x80-\xff]+")
GRAM = 13
COVERAGE = 0.5
END_WORDS = 30
TABLE_BITS = 24
TABLE_SHIFT = np.uint64(64 - TABLE_BITS)

# Invisible characters (soft hyphens, zero-width spaces, marks of direction, tags), accents, Arabic tatweel.
UNSEEN = re.compile(
    "[\u00ad\u0300-\u036f\u061c\u0640\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e0fff]+"
)
TAG = re.compile("</?[A-Za-z][^<>]*>")
# A line break within a word, now or before reflowing; and the gap that some programs write after a ligature.
BREAK = re.compile("[-\u00ac\u00ad\u2010-\u2013\ufb00-\ufb06]\\s*")
LINE_BREAK = re.compile("(?<=\\w)[-\u00ac\u00ad\u2010-\u2013][^\\S\n]*\n\\s*(?=\\w)")
FIRST_WORD, LAST_NO_WORD = re.compile(r"\w+"), re.compile(r".*\W")
NO_WORD = re.compile(r"[^\w\x00-\x7f]+")
# Scripts without spaces between words: Thai to Burmese, Khmer, kana, Chinese.
UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
)

# For hashing words: a code for each letter (ignoring case), digit and non-ASCII byte; 0 for any other byte.
CODES = 37 + 128
CODE_OF_BYTE = np.zeros(256, dtype=np.int32)
for _code, _letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789", 1):
    CODE_OF_BYTE[[ord(_letter), ord(_letter.upper())]] = _code
CODE_OF_BYTE[128:] = np.arange(37, CODES)
HASH_OF_PAIR = np.random.default_rng(0).integers(1 << 64, size=CODES * CODES, dtype=np.uint64)
HASH_OF_PAIR[:CODES] = 0  # pairs that start outside a word
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Held(TypedDict):
    """The best match of a question over all documents: the maximum of each measure, and whether any covers it.

    `coverage` is None for a question too short to check. `source` and `record` locate the document with the highest.
    """

    coverage: float | None
    end_words: int
    covered: bool
    source: NotRequired[str]
    record: NotRequired[str]


class Coverage(TypedDict):
    """A coverage file: numbers of documents read by source, and best matches of questions by digest."""

    documents: dict[str, int]
    questions: dict[str, Held]


@dataclass(frozen=True)
class Match:
    """How much of a question a document holds: the share of its 13-grams, and the consecutive words up to its end."""

    question: Question
    coverage: float
    end_words: int

    @property
    def covers(self) -> bool:
        """Whether the document holds enough of the question to give it away."""
        return self.coverage >= COVERAGE or self.end_words >= END_WORDS


class QuestionFinder:
    """Finds documents that cover a question.

    A document covers a question when it holds at least half of the 13-grams of the question's text (without the
    options), or its last 30 words, after both are `normalised`. `unchecked` counts the questions with fewer than 13
    words, which cannot be checked.
    """

    def __init__(self, questions: list[Question]) -> None:
        unique = {question.digest: question for question in questions}
        self.questions = list(unique.values())
        # Words beyond ASCII cost time in every document, so they are compared only if a question has some.
        self.other_scripts = any(in_other_script(question.question) for question in self.questions)
        # Questions may come from PDFs, too. Line breaks are visible; gaps are found by the words of other questions.
        unbroken = [LINE_BREAK.sub("", question.question) for question in self.questions]
        vocabulary = vocabulary_of(normalised(text, None, self.other_scripts) for text in unbroken)
        texts = [normalised(text, vocabulary, self.other_scripts) for text in unbroken]
        self.vocabulary = vocabulary_of(texts)
        self.grams: dict[bytes, list[tuple[int, int]]] = defaultdict(list)  # gram -> (question, place in it)
        self.gram_counts, self.ends = [], []
        for index, text in enumerate(texts):
            words = words_of(text)
            places = range(len(words) - GRAM + 1)
            self.gram_counts.append(len({gram_at(words, place) for place in places}))
            self.ends.append(len(words) - GRAM)
            for place in places:
                self.grams[gram_at(words, place)].append((index, place))
        self._hashes = np.unique(np.concatenate([gram_hashes(text) for text in texts]))
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self._table[self._hashes >> TABLE_SHIFT] = True
        self.unchecked = self.gram_counts.count(0)

    def covers(self, text: str) -> bool:
        """Whether a document covers a question."""
        return self.find(text) is not None

    def find(self, text: str) -> Match | None:
        """The question that a document covers most; None if it covers none."""
        return most_covering(self.matches(text))

    def matches(self, text: str) -> list[Match]:
        """Every question that shares 13 consecutive words with the document."""
        normal = normalised(text, self.vocabulary, self.other_scripts)
        hashes = gram_hashes(normal)
        candidates = np.flatnonzero(self._table[hashes >> TABLE_SHIFT])  # a cheap look-up that leaves few
        places = np.searchsorted(self._hashes[:-1], hashes[candidates])
        candidates = candidates[self._hashes[places] == hashes[candidates]]
        if not len(candidates):
            return []
        words = words_of(normal)
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
    """The match with the highest coverage among those that cover their question; None if none does."""
    covering = [match for match in matches if match.covers]
    return max(covering, key=lambda match: (match.coverage, match.end_words), default=None)


def normalised(text: str, vocabulary: set[str] | None = None, other_scripts: bool = False) -> bytes:
    """Normalise a text for comparison, as UTF-8, without artifacts of PDFs and web pages.

    HTML entities and tags, ligatures, full-width letters, accents and invisible characters become plain letters or are
    removed. Letters beyond ASCII become `?`, which separates words; with `other_scripts` they stay, and each letter of
    a script without spaces is a word.

    Args:
        vocabulary: words to rejoin if a line break has split them; the halves of other words stay apart.
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))  # some pages are escaped twice
    if "<" in text:
        text = TAG.sub(" ", text)
    if vocabulary is not None:
        text = joined_words(text, vocabulary)
    if text.isascii():
        return text.encode()
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    odd = "".join(map(chr, np.unique(codes[codes > 127])))  # unique ones: few, and cheap to check
    if UNSEEN.search(odd) or not unicodedata.is_normalized("NFKD", odd):
        text = UNSEEN.sub("", unicodedata.normalize("NFKD", text))
    if other_scripts:
        text = UNSPACED.sub(r" \1 ", NO_WORD.sub(" ", unicodedata.normalize("NFC", text).casefold()))
        return text.encode("utf-8", "replace")
    return text.encode("ascii", "replace")


def joined_words(text: str, vocabulary: set[str]) -> str:
    """Rejoin the words that a line break, or the gap after a ligature, has split."""
    parts, done = [], 0
    for gap in BREAK.finditer(text):
        start, end = gap.start() + (gap[0] >= "\ufb00"), gap.end()
        before, after = text[max(done, start - 40) : start].rsplit(None, 1), text[end : end + 40].split(None, 1)
        if not before or not after or start == end:  # a ligature without a gap
            continue
        if is_broken(LAST_NO_WORD.sub("", before[-1]), FIRST_WORD.match(after[0]), gap[0], vocabulary):
            parts.append(text[done:start])
            done = end
    return "".join(parts) + text[done:] if parts else text


def is_broken(before: str, after: re.Match[str] | None, gap: str, vocabulary: set[str]) -> bool:
    """Whether two halves form a word of the vocabulary. A hyphen within a line may be intended."""
    if after is None:
        return False
    halves = [normalised(half, None, True).decode().lower() for half in (before, after[0])]
    if "".join(halves) not in vocabulary:
        return False
    return gap[-1:].isspace() or not set(halves) <= vocabulary


def in_other_script(text: str) -> bool:
    """Whether most letters of a text are not ASCII, after removing accents."""
    letters = [letter for letter in unicodedata.normalize("NFKD", text) if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) < len(letters) / 2


def vocabulary_of(texts: Iterable[bytes]) -> set[str]:
    """The different words of normalised texts."""
    return {word.decode() for text in texts for word in words_of(text)}


def words_of(text: bytes) -> list[bytes]:
    """The words of a normalised text, in lower case."""
    return WORD.findall(text.lower())


def gram_at(words: list[bytes], place: int) -> bytes:
    """13 consecutive words."""
    return b" ".join(words[place : place + GRAM])


def gram_hashes(text: bytes) -> np.ndarray:
    """Hashes of the 13-grams of a normalised text: uint64 (grams,).

    Array operations on bytes only, for speed: every document is hashed. A word's hash is the sum of random numbers,
    one for each pair of neighbouring bytes; the hash of consecutive words is a polynomial in the hashes of the words.
    """
    codes = CODE_OF_BYTE[np.frombuffer(text, dtype=np.uint8)]
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
    """Hashes of the words of `left`, each followed by the `words` words of `right`."""
    hashes: np.ndarray = left[: len(right)] * MULTIPLIER**words + right
    return hashes
