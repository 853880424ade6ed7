"""The demo's table: each model's held-out accuracy by letter, by text and with reasons."""

import numpy as np

from ..medqa.compare import in_formulation
from ..medqa.questions import Question
from ..medqa.report import cell
from ..medqa.results import Evaluation
from ..medqa.statistics import paired, share_right

HEADLINE = "generate reasoned"
COLUMNS = {"letter": "letters", "text": "texts", HEADLINE: "reasons"}
HEAD = ["", *COLUMNS.values(), "never asked: texts", "reasons"]
NEVER_ASKED = "mechanism, never asked"


def accuracies(evaluations: dict[str, Evaluation], questions: list[Question]) -> list[list[str]]:
    """A row for each model: all questions by letter, text and reasons, then those of a kind that train never asks."""
    never = never_asked(questions)
    return [
        [
            model,
            *(cell(share_right(right(evaluation, name))) for name in COLUMNS),
            *(cell(share_right(right(evaluation, name)[never])) for name in ("text", HEADLINE)),
        ]
        for model, evaluation in evaluations.items()
    ]


def never_asked(questions: list[Question]) -> np.ndarray:
    """Which questions take three steps that no train question joins: bool (n,)."""
    return np.array([question.meta_info == NEVER_ASKED for question in questions])


def right(evaluation: Evaluation, formulation: str) -> np.ndarray:
    """Which questions are right in a formulation: bool (n,)."""
    (asked,) = in_formulation([evaluation], formulation)
    return np.equal(asked.predictions, asked.gold)


def in_words(first: np.ndarray, second: np.ndarray) -> str:
    """What changed from the first to the second, bool (n,) each, with its p-value."""
    row = paired(first, second)
    changes = f"{row.only_second} became right, {row.only_first} became wrong"
    return f"{changes}, exact McNemar p = {row.p_value:.2g}"
