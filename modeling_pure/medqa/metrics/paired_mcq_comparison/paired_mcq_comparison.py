"""Two models that answered the same multiple-choice questions: exact McNemar and paired bootstrap."""

from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import binomtest

_DESCRIPTION = """
Compares two sets of predictions on the same questions: how many questions only one of them has right, the exact
(binomial) McNemar test on these, and a seeded paired bootstrap interval of the difference of the accuracies.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions1 (list of int): of the first model, index of the predicted option; -1 for no answer.
    predictions2 (list of int): of the second model, for the same questions in the same order.
    references (list of int): index of the right option.
    confidence_level (float): of the interval, 0.95 by default.
    n_resamples (int): bootstrap resamples, 10,000 by default.
    seed (int): of the bootstrap.

Returns:
    difference (accuracy of the second less that of the first), bootstrap_interval [low, high],
    only_first and only_second (questions that only one has right), p_value (two-sided; 1.0 if they never differ).

Examples:
    >>> comparison = evaluate.load("modeling_pure/medqa/metrics/paired_mcq_comparison")  # doctest: +SKIP
    >>> comparison.compute(predictions1=[0, 0], predictions2=[0, 1], references=[0, 1])["difference"]  # doctest: +SKIP
    0.5
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PairedMcqComparison(evaluate.Comparison):
    """See `_DESCRIPTION` and `_KWARGS_DESCRIPTION`."""

    def _info(self) -> evaluate.ComparisonInfo:
        number = datasets.Value("int32")
        return evaluate.ComparisonInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions1": number, "predictions2": number, "references": number}),
        )

    def _compute(
        self,
        predictions1: list[int],
        predictions2: list[int],
        references: list[int],
        confidence_level: float = 0.95,
        n_resamples: int = 10_000,
        seed: int = 0,
    ) -> dict[str, Any]:
        if len(references) == 0:
            raise ValueError("paired_mcq_comparison: no predictions")
        gold = np.asarray(references)
        first, second = np.asarray(predictions1) == gold, np.asarray(predictions2) == gold
        return vars(paired(first, second, confidence_level, n_resamples, seed))


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions; `difference` is the second's accuracy less the first's."""

    difference: float
    bootstrap_interval: tuple[float, float]
    only_first: int
    only_second: int
    p_value: float


def paired(
    first: np.ndarray,
    second: np.ndarray,
    confidence_level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Compare two models by which questions they have right, bool (n,) each."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    interval = bootstrap_interval(only_first, only_second, len(first), n_resamples, confidence_level, seed)
    difference = (only_second - only_first) / len(first)
    return Paired(difference, interval, only_first, only_second, exact_mcnemar(only_first, only_second))


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test: a binomial test on the questions that only one model has right."""
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def bootstrap_interval(
    only_first: int,
    only_second: int,
    n: int,
    n_resamples: int = 10_000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Paired percentile bootstrap interval of the difference of two accuracies, second less first.

    A question counts +1, -1 or 0. In a resample of n questions the counts of these are multinomial, so they are drawn
    directly, with the same distribution as resampled pairs.
    """
    shares = [only_first / n, only_second / n, (n - only_first - only_second) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, n_resamples)
    difference = (counts[:, 1] - counts[:, 0]) / n
    low, high = np.quantile(difference, [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    return float(low), float(high)
