"""Report the documents of a recipe's sources that contain an evaluation question, and so would be left out.

    pure decontaminate --config RECIPE [--documents 10000] [--report hits.jsonl]
        [--coverage coverage.json]

Without a recipe, name the files:

    --sources.mine.path 'mine/*.parquet' --sources.mine.weight 1 --decontaminate medqa/dev.jsonl

The coverage file says how much of each question the documents contain; `pure eval --contamination` reads it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..atomic import write_atomically
from ..data.opening import open_sources
from ..data.source_records import Records
from ..errors import InputError
from ..medqa.decontamination import Coverage, Held, Match, QuestionFinder, most_covering
from ..options import check_numbers, check_output_file, check_texts, option
from . import parse_recipe

NOTHING: Held = {"coverage": 0.0, "end_words": 0, "covered": False}  # for a question that no document contains


@dataclass
class ReportArguments:
    """Options of this command, in addition to the recipe."""

    documents: int = option(10_000, "number of documents to read from each source; 0 reads all")
    report: str | None = option(None, "jsonl file to write: the documents that would be left out")
    coverage: str | None = option(None, "json file to write: how much of each question the documents contain")

    def __post_init__(self) -> None:
        check_texts(self)
        check_numbers(self, documents=0)
        for name in ("report", "coverage"):
            if file := getattr(self, name):
                check_output_file(name, file)


def main() -> None:
    """Report the documents of each source that contain an evaluation question."""
    recipe = parse_recipe(ReportArguments, __doc__)
    data, options = open_sources(recipe.arguments.mixture, recipe.arguments, recipe.seed), recipe.options
    if not data.evaluation_questions:
        raise InputError("decontaminate: no questions; set it to a file or Hub id, or add a medqa source")
    finder = QuestionFinder(data.evaluation_questions)
    print(f"{len(finder.questions):,} evaluation questions, {finder.unchecked:,} of them too short to check")
    best: dict[str, Held] = {}
    hits: list[dict[str, Any]] = []
    read: dict[str, int] = {}
    for one in data.sources:
        found, read[one.source.name] = report_source(one.records, finder, options.documents, best)
        hits += found
    if options.report:
        Path(options.report).write_text("".join(json.dumps(hit) + "\n" for hit in hits), encoding="utf-8")
        print(f"{options.report}: {len(hits):,} documents")
    if options.coverage:
        write_atomically(Path(options.coverage), json.dumps(coverage_facts(finder, read, best), indent=1) + "\n")
        shared = f"{len(best):,} of {len(finder.questions):,} questions share 13 consecutive words with a document"
        print(f"{options.coverage}: {shared}")


def report_source(
    records: Records, finder: QuestionFinder, documents: int, best: dict[str, Held]
) -> tuple[list[dict[str, Any]], int]:
    """Read up to `documents` documents of a source, and print how many contain a question.

    Args:
        best: by digest of a question, the most that any document contains of it; updated here.

    Returns:
        The documents that contain a question, and the number of documents read.
    """
    hits: list[dict[str, Any]] = []
    read = 0
    for where, text in documents_of(records, documents):
        read += 1
        matches = finder.matches(text)
        for match in matches:
            note_best(best, match, where)
        if most := most_covering(matches):
            found = {"coverage": round(most.coverage, 3), "end_words": most.end_words}
            hits.append({**where, "question": most.question.digest, **found})
    questions = len({hit["question"] for hit in hits})
    print(f"{records.key}: {len(hits):,} of {read:,} documents contain one of {questions:,} evaluation questions")
    return hits, read


def documents_of(records: Records, documents: int) -> Iterator[tuple[dict[str, str], str]]:
    """Yield up to `documents` texts of a source (0: all), each after its `source` and `record`."""
    texts = (
        ({"source": records.key.removeprefix("sources."), "record": records.locate(shard, number)}, text)
        for shard in range(records.num_shards)
        for number, text in tqdm(records.read(shard, 0, 0), desc=records.key, unit="doc", disable=None, leave=False)
        if isinstance(text, str)
    )
    return islice(texts, documents or None)


def note_best(best: dict[str, Held], match: Match, where: dict[str, str]) -> None:
    """Update the highest coverage of a question, with its document, and the longest end."""
    known = best.get(match.question.digest, NOTHING)
    held: Held = known.copy()
    if match.coverage > (known["coverage"] or 0.0):
        held["coverage"] = round(match.coverage, 3)
        held["source"], held["record"] = where["source"], where["record"]
    held["end_words"] = max(match.end_words, known["end_words"])
    held["covered"] = match.covers or known["covered"]
    best[match.question.digest] = held


def coverage_facts(finder: QuestionFinder, read: dict[str, int], best: dict[str, Held]) -> Coverage:
    """The content of the coverage file. The coverage of a question that is too short is null."""
    too_short: Held = {**NOTHING, "coverage": None}
    questions = {
        question.digest: best.get(question.digest, NOTHING if grams else too_short)
        for question, grams in zip(finder.questions, finder.gram_counts, strict=True)
    }
    return {"documents": read, "questions": questions}
