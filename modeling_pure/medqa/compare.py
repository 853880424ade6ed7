"""Compare evaluations that were made on the same questions.

    python -m modeling_pure.medqa.compare runs/sft/eval.json runs/grpo/eval.json [MORE ...]

Each of the others is compared with the first: difference of the accuracies with a paired bootstrap interval, exact
McNemar test, and, where there are several, Holm's adjusted p-values. What is compared are the headlines, or with
`--formulation letter` the answers by letter of each, and so on.
"""

from dataclasses import replace

import numpy as np

from ..console import print_table
from ..errors import InputError, run_script
from ..options import CommandLine
from .metrics import load_metric
from .questions import Question
from .results import Evaluation, read_evaluations, require_same_questions
from .schema import Compared, Comparison, Paired
from .sections import cell, lead
from .statistics import holm, in_words, p_against_chance, share_right

HEAD = ["model", "accuracy (95 % Wilson)", "difference (95 % bootstrap)", "gained / lost", "McNemar p", "Holm p"]


def main() -> None:
    """Read, refuse what cannot be compared, print the table."""
    parser = CommandLine("medqa.compare", __doc__)
    parser.add_argument("results", nargs="+", metavar="EVAL.json", help="eval.json of an evaluation, or its folder")
    parser.add_argument("--formulation", metavar="NAME", help="compare these answers instead of the headlines")
    options = parser.parse_args()
    if len(options.results) < 2:
        raise InputError("expected at least two evaluations to compare")
    first, *others = named_apart(in_formulation(read_evaluations("EVAL.json", options.results), options.formulation))
    rows = compare_evaluations(first, others)
    print_table(
        f"{first.task}, {len(first.ids):,} questions: compared with {first.name}", HEAD, table_rows(first, rows)
    )
    for row in rows:
        print(f"{row['name']} is {in_words(row['difference'], row['p_holm'], first.name)}")


def in_formulation(evaluations: list[Evaluation], formulation: str | None) -> list[Evaluation]:
    """The evaluations in one of their formulations, or as they are.

    Raises:
        InputError: one of them did not ask in it.
    """
    if formulation is None:
        return evaluations
    found = []
    for evaluation in evaluations:
        if (asked := evaluation.by(formulation)) is None:
            known = [evaluation.formulation, *evaluation.beside]
            raise InputError(f"--formulation: '{evaluation.name}' has {known}, found {formulation!r}")
        found.append(asked)
    return found


def named_apart(evaluations: list[Evaluation]) -> list[Evaluation]:
    """With their formulations behind their names, if these differ."""
    if len({evaluation.formulation for evaluation in evaluations}) == 1:
        return evaluations
    return [replace(each, name=f"{each.name} ({each.formulation})") for each in evaluations]


def compare_evaluations(first: Evaluation, others: list[Evaluation]) -> list[Comparison]:
    """What `paired` says of each of the others against the first, with its name."""
    for other in others:
        require_same_questions("EVAL.json", first.ids, first.gold, first.task, other)
    right = [np.equal(each.predictions, each.gold) for each in (first, *others)]
    rows: list[Compared] = [
        {"name": other.name, **share_right(of_other), **paired(right[0], of_other)}
        for other, of_other in zip(others, right[1:], strict=True)
    ]
    return with_holm(rows)


def compare_predictions(
    questions: list[Question], predictions: np.ndarray, chance: float, others: dict[str, np.ndarray]
) -> list[Comparison]:
    """A model beside chance (exact binomial test) and beside other predictions (`paired`), with Holm over them all.

    Args:
        predictions: (n,), -1 where there is none.
        others: predictions (n,) by name. `difference` is the model's accuracy less theirs.
    """
    gold = np.array([question.answer for question in questions])
    right = predictions == gold
    n, accuracy = len(gold), float(right.mean())
    rows: list[Compared] = [
        {
            "name": "chance",
            "accuracy": chance,
            "difference": accuracy - chance,
            "p_value": p_against_chance(int(right.sum()), n, chance),
        }
    ]
    for name, other in others.items():
        rows.append({"name": name, **share_right(other == gold), **paired(other == gold, right)})
    return with_holm(rows)


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """`paired_mcq_comparison` of the questions that two have right: bool (n,) each."""
    ones = np.ones(len(first), dtype=int)
    found: Paired = load_metric("paired_mcq_comparison").compute(
        predictions1=first.astype(int), predictions2=second.astype(int), references=ones
    )
    return found


def with_holm(rows: list[Compared]) -> list[Comparison]:
    """The rows with `p_holm`, their `p_value` adjusted for how many there are."""
    return [{**row, "p_holm": p} for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True)]


def table_rows(first: Evaluation, rows: list[Comparison]) -> list[list[str]]:
    """The table's cells; `gained` is what the first had wrong."""
    own = [first.name, cell(share_right(np.equal(first.predictions, first.gold))), "", "", "", ""]
    return [own, *(table_row(row) for row in rows)]


def table_row(row: Comparison) -> list[str]:
    """The cells of one of the others."""
    changes = f"{row['only_second']} / {row['only_first']}"
    return [row["name"], cell(row), lead(row), changes, f"{row['p_value']:.2g}", f"{row['p_holm']:.2g}"]


if __name__ == "__main__":
    run_script(main, "modeling_pure.medqa.compare")
