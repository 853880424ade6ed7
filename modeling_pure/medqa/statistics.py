"""Tests on accuracies, many at once, and what they say in words. Intervals and paired tests are in `metrics/`."""

from collections.abc import Sequence
from math import comb

import numpy as np
from scipy.stats import binomtest

from .metrics.medqa_accuracy.medqa_accuracy import wilson_interval
from .schema import Share

ALPHA = 0.05


def share_right(right: np.ndarray) -> Share:
    """`n`, `accuracy` and its Wilson interval from which answers are right, bool (n,)."""
    correct, n = int(right.sum()), len(right)
    return {"n": n, "accuracy": correct / n, "wilson_interval": list(wilson_interval(correct, n))}


def p_against_chance(correct: int, n: int, chance: float) -> float:
    """Two-sided p-value of the exact binomial test that right answers are guesses."""
    return float(binomtest(correct, n, chance).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979): at a level of 5 %, a chance of 5 % that any one is wrongly below it."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = so_far
    return adjusted


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of `k` of a question's samples is right (Chen et al. 2021): unbiased.

    >>> pass_at_k(samples=4, right=1, k=2)
    0.5
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def in_words(difference: float, p_value: float, other: str) -> str:
    """Whether an accuracy differs from another one, as a sentence would say it.

    >>> in_words(0.02, 0.2, "chance"), in_words(-0.1, 0.001, "always A")
    ('not distinguishable from chance (p = 0.2)', 'below always A (p = 0.001)')
    """
    if p_value >= ALPHA:
        return f"not distinguishable from {other} (p = {p_value:.2g})"
    return f"{'above' if difference > 0 else 'below'} {other} (p = {p_value:.2g})"
