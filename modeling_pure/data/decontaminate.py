"""Which documents of a recipe's sources hold an evaluation question, and so would be left out.

    python -m modeling_pure.data.decontaminate --config RECIPE [--documents 10000] [--report hits.jsonl]

For files without a recipe:

    --sources.mine.path 'mine/*.parquet' --sources.mine.weight 1 --decontaminate medqa/dev.jsonl
"""

import json
import sys
from dataclasses import dataclass, field

from tqdm import tqdm

from ..errors import InputError, run_script
from ..recipe import RecipeParser
from ..training.arguments import ModelArguments, PureTrainingArguments
from .arguments import DataArguments
from .guard import Guard
from .held_out import evaluation_guard, open_sources
from .source_rows import Rows
from .sources import parse_sources


@dataclass
class ReportArguments:
    """What this command is told beside the recipe."""

    documents: int = field(default=10_000, metadata={"help": "documents to read of each source, 0 for all"})
    report: str | None = field(default=None, metadata={"help": "jsonl file for the documents that would be dropped"})


def main() -> None:
    """For each source of a recipe, the documents that hold an evaluation question."""
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


def report_source(rows: Rows, guard: Guard, documents: int) -> list[dict]:
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
