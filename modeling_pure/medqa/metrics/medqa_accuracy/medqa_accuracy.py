"""Accuracy on multiple-choice questions with three measures of its uncertainty."""

from math import sqrt
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import binomtest

_DESCRIPTION = """
Accuracy of predicted options, lm-evaluation-harness's standard error, Wilson's score interval, a seeded bootstrap
interval, and the recall of each option, whose mean is chance for any constant answer.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): index of the predicted option; -1 for no answer, which is wrong.
    references (list of int): index of the right option.
    confidence_level (float): of both intervals, 0.95 by default.
    n_resamples (int): bootstrap resamples, 10,000 by default; 0 omits the bootstrap interval.
    seed (int): of the bootstrap.

Returns:
    accuracy, correct, n, standard_error, wilson_interval [low, high], bootstrap_interval [low, high],
    recall {option: accuracy on the questions whose answer it is}, balanced_accuracy (mean recall).

Examples:
    >>> metric = evaluate.load("modeling_pure/medqa/metrics/medqa_accuracy")  # doctest: +SKIP
    >>> metric.compute(predictions=[0, 1, 2, 0], references=[0, 1, 2, 3])["accuracy"]  # doctest: +SKIP
    0.75
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MedqaAccuracy(evaluate.Metric):
    """See `_DESCRIPTION` and `_KWARGS_DESCRIPTION`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(
        self,
        predictions: list[int],
        references: list[int],
        confidence_level: float = 0.95,
        n_resamples: int = 10_000,
        seed: int = 0,
    ) -> dict[str, Any]:
        if len(references) == 0:
            raise ValueError("medqa_accuracy: no predictions")
        gold = np.asarray(references)
        right = np.asarray(predictions) == gold
        recall = {str(option): float(right[gold == option].mean()) for option in np.unique(gold)}
        measured = accuracy_with_intervals(int(right.sum()), len(right), confidence_level, n_resamples, seed)
        return {**measured, "recall": recall, "balanced_accuracy": float(np.mean(list(recall.values())))}


def accuracy_with_intervals(
    correct: int, n: int, confidence_level: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """`accuracy`, `correct`, `n`, `standard_error`, `wilson_interval` and, with resamples, `bootstrap_interval`."""
    measured: dict[str, Any] = {
        "accuracy": correct / n,
        "correct": correct,
        "n": n,
        "standard_error": standard_error(correct, n),
        "wilson_interval": wilson_interval(correct, n, confidence_level),
    }
    if n_resamples:
        measured["bootstrap_interval"] = bootstrap_interval(correct, n, n_resamples, confidence_level, seed)
    return measured


def standard_error(correct: int, n: int) -> float:
    """lm-evaluation-harness's standard error: sample standard deviation (ddof 1) / sqrt(n); nan for n = 1."""
    p = correct / n
    return sqrt(p * (1 - p) / (n - 1)) if n > 1 else float("nan")


def wilson_interval(correct: int, n: int, confidence_level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    low, high = binomtest(correct, n).proportion_ci(confidence_level, method="wilson")
    return float(low), float(high)


def bootstrap_interval(
    correct: int, n: int, n_resamples: int = 10_000, confidence_level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy (Efron 1979).

    The number of right answers in a resample of n questions is binomial with the accuracy as its probability, so it is
    drawn directly, with the same distribution as resampled questions.
    """
    share = np.random.default_rng(seed).binomial(n, correct / n, n_resamples) / n
    low, high = np.quantile(share, [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    return float(low), float(high)
