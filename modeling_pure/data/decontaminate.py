"""Documents that hold a question of an evaluation set, found while they stream by.

Vignettes share stock phrases, so that a bare n-gram hit says little: of the 1,273 questions of MedQA's test split, 365
share 13 words in a row with another one. What counts is how much of one question a document covers.

    python -m modeling_pure.data.decontaminate --config RECIPE [--documents 10000] [--report hits.jsonl]

reads the sources of a recipe and reports which of their documents would be dropped. For files without a recipe:
--sources.mine.path 'mine/*.parquet' --sources.mine.weight 1 --decontaminate medqa/dev.jsonl
"""

import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ..errors import InputError, run_script
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
        hashes = gram_hashes(text)
        candidates = np.flatnonzero(self._table[hashes >> TABLE_SHIFT])  # a look-up each, and few are left
        places = np.searchsorted(self._hashes[:-1], hashes[candidates])
        candidates = candidates[self._hashes[places] == hashes[candidates]]
        if not len(candidates):
            return None
        words = words_of(text)
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
    return left[: len(right)] * MULTIPLIER**words + right


@dataclass
class ReportArguments:
    """What this command is told beside the recipe."""

    documents: int = field(default=10_000, metadata={"help": "documents to read of each source, 0 for all"})
    report: str | None = field(default=None, metadata={"help": "jsonl file for the documents that would be dropped"})


def main() -> None:
    """For each source of a recipe, the documents that hold an evaluation question."""
    # A command stands above the room it lies in: nothing else in this file needs the recipe or the sources.
    from ..recipe import RecipeParser
    from ..training.arguments import ModelArguments, PureTrainingArguments
    from .arguments import DataArguments
    from .held_out import evaluation_guard, open_sources
    from .sources import parse_sources

    parser = RecipeParser((ReportArguments, ModelArguments, DataArguments, PureTrainingArguments), description=__doc__)
    report, _, arguments, training = parser.parse_recipe(sys.argv[1:])
    opened = open_sources(parse_sources(arguments.sources), arguments, training.seed)
    guard = evaluation_guard(opened, arguments)
    if guard is None:
        raise InputError("decontaminate: expected a file or Hub id of evaluation questions, or a medqa source")
    print(f"{len(guard.questions):,} evaluation questions, {guard.unchecked:,} of them too short to be checked")
    hits = [hit for one in opened for hit in report_source(one.rows, guard, report.documents)]
    if report.report:
        with open(report.report, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(hit) + "\n" for hit in hits)
        print(f"{report.report}: {len(hits):,} documents")


def report_source(rows, guard: Guard, documents: int) -> list[dict]:
    """Read up to `documents` documents of a source, print how many hold a question, and return which."""
    hits, read = [], 0
    for piece in range(rows.num_pieces):
        for number, text in tqdm(rows.read(piece, 0, 0), desc=rows.key, unit="doc", disable=None, leave=False):
            if not isinstance(text, str):
                continue
            read += 1
            if match := guard.find(text):
                where = {"source": rows.key.removeprefix("sources."), "row": rows.locate(piece, number)}
                measure = {"coverage": round(match.coverage, 3), "end_words": match.end_words}
                hits.append({**where, "question": match.question.digest, **measure})
            if read == documents:
                break
        if read == documents:
            break
    questions = len({hit["question"] for hit in hits})
    print(f"{rows.key}: {len(hits):,} of {read:,} documents hold an evaluation question ({questions:,} different)")
    return hits


if __name__ == "__main__":
    run_script(main, "modeling_pure.data.decontaminate")
