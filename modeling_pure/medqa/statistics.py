"""Accuracy with its uncertainty, and the paired test between two models that answered the same questions."""

from collections.abc import Sequence
from math import sqrt

from scipy.stats import binomtest


def standard_error(correct: Sequence[bool]) -> float:
    """lm-evaluation-harness's standard error of a mean: sample standard deviation (ddof 1) / sqrt(n)."""
    n = len(correct)
    if n < 2:
        return float("nan")
    p = sum(correct) / n
    return sqrt(p * (1 - p) / (n - 1))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def exact_mcnemar(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """Exact (binomial) McNemar test on the questions that only one of two models answered right.

    Returns `only_first`, `only_second` (counts) and the two-sided `p_value`; 1.0 where they never differ.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    p_value = binomtest(only_first, discordant).pvalue if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": float(p_value)}
