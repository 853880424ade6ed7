"""Compare evaluations of the same questions.

    pure compare runs/sft/eval.json runs/grpo/eval.json [MORE ...]

Each evaluation is compared with the first: difference of the accuracies with a paired bootstrap interval, exact
McNemar test, and Holm's adjusted p-values. The headlines are compared, or with `--formulation letter` the answers by
letter.
"""

from dataclasses import replace

import numpy as np

from ..console import print_table
from ..errors import InputError
from ..options import CommandLine
from .comparisons import Comparison, with_holm
from .report import BOOTSTRAP, WILSON, cell, lead
from .results import Evaluation, read_evaluations
from .statistics import in_words, paired, share_right

HEAD = ["model", WILSON, f"difference, {BOOTSTRAP}", "gained / lost", "McNemar p", "Holm p"]


def main() -> None:
    """Read the evaluations, refuse what cannot be compared, and print the table."""
    parser = CommandLine(__doc__)
    parser.add_argument("results", nargs="+", metavar="EVAL.json", help="eval.json of an evaluation, or its folder")
    parser.add_argument("--formulation", metavar="NAME", help="compare this formulation instead of the headlines")
    options = parser.parse_args()
    if len(options.results) < 2:
        raise InputError("expected at least two evaluations to compare")
    evaluations = in_formulation(read_evaluations("EVAL.json", options.results), options.formulation)
    if len({evaluation.formulation for evaluation in evaluations}) > 1:
        evaluations = [replace(each, name=f"{each.name} ({each.formulation})") for each in evaluations]
    first, *others = evaluations
    rows = compare_evaluations(first, others)
    table = [[first.name, cell(share_right(np.equal(first.predictions, first.gold))), "", "", "", ""]]
    for row in rows:
        counts = f"{row.only_second} / {row.only_first}"
        table.append([row.name, cell(row), lead(row), counts, f"{row.p_value:.2g}", f"{row.p_holm:.2g}"])
    print_table(f"{first.task}, {len(first.ids):,} questions: compared with {first.name}", HEAD, table)
    for row in rows:
        print(f"{row.name} is {in_words(row.difference, row.p_holm, first.name)}")


def in_formulation(evaluations: list[Evaluation], formulation: str | None) -> list[Evaluation]:
    """The evaluations in one of their formulations, by default the headline; `InputError` if one lacks it."""
    if formulation is None:
        return evaluations
    chosen = []
    for evaluation in evaluations:
        if (other := evaluation.by(formulation)) is None:
            known = [evaluation.formulation, *evaluation.beside]
            raise InputError(f"--formulation: '{evaluation.name}' has {known}, found {formulation!r}")
        chosen.append(other)
    return chosen


def compare_evaluations(first: Evaluation, others: list[Evaluation]) -> list[Comparison]:
    """Compare each of the others with the first; `difference` is their accuracy less that of the first."""
    right = np.equal(first.predictions, first.gold)
    rows = []
    for other in others:
        other.require_same_questions("EVAL.json", first.ids, first.gold, first.task)
        other_right = np.equal(other.predictions, other.gold)
        rows.append(Comparison(other.name, **vars(share_right(other_right)), **vars(paired(right, other_right))))
    return with_holm(rows)
