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
import zlib
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
