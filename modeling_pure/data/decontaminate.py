"""Which documents of a recipe's sources hold an evaluation question, and so would be left out.

    python -m modeling_pure.data.decontaminate --config RECIPE [--documents 10000] [--report hits.jsonl]
        [--coverage coverage.json]

For files without a recipe:

    --sources.mine.path 'mine/*.parquet' --sources.mine.weight 1 --decontaminate medqa/dev.jsonl

The coverage file says of each question how much of it the text holds; `eval_medqa.py --contamination` reads it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from tqdm import tqdm

from ..atomic import write_atomically
from ..errors import InputError, run_script
from ..options import check_numbers, check_output_file, check_texts
from ..recipe import RecipeParser
from ..training.arguments import ModelArguments, PureTrainingArguments
from ..training.trainer_options import seed_of_data
from .arguments import DataArguments
from .guard import Coverage, Guard, Held, Match, most_covering
from .held_out import evaluation_guard, open_sources
from .source_rows import Rows
from .sources import parse_sources

NOTHING: Held = {"coverage": 0.0, "end_words": 0, "covered": False}  # what is held of a question that no document has


class Place(TypedDict):
    """The location of a document, as shown to users."""

    source: str
    row: str


class Measures(TypedDict):
    """The two measures of a `guard.Match`."""

    coverage: float
    end_words: int


@dataclass
class ReportArguments:
    """What this command is told beside the recipe."""

    documents: int = field(default=10_000, metadata={"help": "documents to read of each source, 0 for all"})
    report: str | None = field(default=None, metadata={"help": "jsonl file for the documents that would be dropped"})
    coverage: str | None = field(
        default=None, metadata={"help": "json file for how much of each question the documents hold"}
    )

    def __post_init__(self) -> None:
        check_texts(self)
        check_numbers(self, documents=0)
        for name in ("report", "coverage"):
            if file := getattr(self, name):
                check_output_file(name, file)


def main() -> None:
    """For each source of a recipe, the documents that hold an evaluation question."""
    parser = RecipeParser((ReportArguments, ModelArguments, DataArguments, PureTrainingArguments), description=__doc__)
    report, _, arguments, training = parser.parse_recipe(sys.argv[1:])
    opened = open_sources(parse_sources(arguments.sources), arguments, seed_of_data(training))
    guard = evaluation_guard(opened, arguments)
    if guard is None:
        raise InputError("decontaminate: expected a file or Hub id of evaluation questions, or a medqa source")
    print(f"{len(guard.questions):,} evaluation questions, {guard.unchecked:,} of them too short to be checked")
    best: dict[str, Held] = {}
    hits: list[dict[str, Any]] = []
    read: dict[str, int] = {}
    for one in opened:
        found, read[one.source.name] = report_source(one.rows, guard, report.documents, best)
        hits += found
    if report.report:
        with open(report.report, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(hit) + "\n" for hit in hits)
        print(f"{report.report}: {len(hits):,} documents")
    if report.coverage:
        write_atomically(Path(report.coverage), json.dumps(coverage_facts(guard, read, best), indent=1) + "\n")
        print(
            f"{report.coverage}: {len(best):,} of {len(guard.questions):,} questions share 13 words in a row with one"
        )


def report_source(rows: Rows, guard: Guard, documents: int, best: dict[str, Held]) -> tuple[list[dict[str, Any]], int]:
    """Read up to `documents` documents of a source, print how many hold a question; returns which, and how many.

    Args:
        best: digest of a question -> the most that any document so far holds of it; brought up to date.
    """
    hits: list[dict[str, Any]] = []
    read = 0
    for where, text in documents_of(rows, documents):
        read += 1
        matches = guard.matches(text)
        for match in matches:
            note_best(best, match, where)
        if most := most_covering(matches):
            hits.append({**where, "question": most.question.digest, **measures(most)})
    questions = len({hit["question"] for hit in hits})
    print(f"{rows.key}: {len(hits):,} of {read:,} documents hold an evaluation question ({questions:,} different)")
    return hits, read


def documents_of(rows: Rows, documents: int) -> Iterator[tuple[Place, str]]:
    """Up to `documents` texts of a source (0: all), and where each stands."""
    texts = (
        (Place(source=rows.key.removeprefix("sources."), row=rows.locate(shard, number)), text)
        for shard in range(rows.num_shards)
        for number, text in tqdm(rows.read(shard, 0, 0), desc=rows.key, unit="doc", disable=None, leave=False)
        if isinstance(text, str)
    )
    return islice(texts, documents or None)


def note_best(best: dict[str, Held], match: Match, where: Place) -> None:
    """Keep the highest coverage and the longest end of a question, and the document of the first."""
    known = best.get(match.question.digest, NOTHING)
    end_words, covered = max(match.end_words, known["end_words"]), match.covers or known["covered"]
    if match.coverage > (known["coverage"] or 0.0):
        held: Held = {**measures(match), "end_words": end_words, **where, "covered": covered}
    else:
        held = {**known, "end_words": end_words, "covered": covered}
    best[match.question.digest] = held


def measures(match: Match) -> Measures:
    """The two numbers of a match."""
    return {"coverage": round(match.coverage, 3), "end_words": match.end_words}


def coverage_facts(guard: Guard, read: dict[str, int], best: dict[str, Held]) -> Coverage:
    """What the coverage file holds: documents read of each source, and each question; null where it is too short."""
    too_short: Held = {**NOTHING, "coverage": None}
    questions = {
        question.digest: best.get(question.digest, NOTHING if grams else too_short)
        for question, grams in zip(guard.questions, guard.gram_counts, strict=True)
    }
    return {"documents": read, "questions": questions}


if __name__ == "__main__":
    run_script(main, "modeling_pure.data.decontaminate")
