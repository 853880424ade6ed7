"""Compare evaluations that were made on the same questions.

    pure compare runs/sft/eval.json runs/grpo/eval.json [MORE ...]

Each of the others is compared with the first: difference of the accuracies with a paired bootstrap interval, exact
McNemar test, and Holm's adjusted p-values. The headlines are compared, or with `--formulation letter` the answers by
letter of each, and so on.
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
    """Read, refuse what cannot be compared, print the table."""
    parser = CommandLine(__doc__)
    parser.add_argument("results", nargs="+", metavar="EVAL.json", help="eval.json of an evaluation, or its folder")
    parser.add_argument("--formulation", metavar="NAME", help="compare these answers instead of the headlines")
    options = parser.parse_args()
    if len(options.results) < 2:
        raise InputError("expected at least two evaluations to compare")
    evaluations = in_formulation(read_evaluations("EVAL.json", options.results), options.formulation)
    if len({evaluation.formulation for evaluation in evaluations}) > 1:
        evaluations = [replace(each, name=f"{each.name} ({each.formulation})") for each in evaluations]
    first, *others = evaluations
    rows = compare_evaluations(first, others)
    own = [first.name, cell(share_right(np.equal(first.predictions, first.gold))), "", "", "", ""]
    table = [
        [
            row.name,
            cell(row),
            lead(row),
            f"{row.only_second} / {row.only_first}",
            f"{row.p_value:.2g}",
            f"{row.p_holm:.2g}",
        ]
        for row in rows
    ]
    title = f"{first.task}, {len(first.ids):,} questions: compared with {first.name}"
    print_table(title, HEAD, [own, *table])
    for row in rows:
        print(f"{row.name} is {in_words(row.difference, row.p_holm, first.name)}")


def in_formulation(evaluations: list[Evaluation], formulation: str | None) -> list[Evaluation]:
    """The evaluations in one of their formulations, or as they are; `InputError` if one lacks it."""
    if formulation is None:
        return evaluations
    found = []
    for evaluation in evaluations:
        if (asked := evaluation.by(formulation)) is None:
            known = [evaluation.formulation, *evaluation.beside]
            raise InputError(f"--formulation: '{evaluation.name}' has {known}, found {formulation!r}")
        found.append(asked)
    return found


def compare_evaluations(first: Evaluation, others: list[Evaluation]) -> list[Comparison]:
    """Compare each of the others with the first: `difference` is their accuracy less that of the first."""
    right = np.equal(first.predictions, first.gold)
    rows = []
    for other in others:
        other.require_same_questions("EVAL.json", first.ids, first.gold, first.task)
        of_other = np.equal(other.predictions, other.gold)
        rows.append(Comparison(other.name, **vars(share_right(of_other)), **vars(paired(right, of_other))))
    return with_holm(rows)
