"""Statistics of answers: intervals, tests, calibration, label bias, and the effect of the order of the options.

Predictions are indices of options, -1 for no answer. Scores are log-likelihoods (n, options).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest, chisquare, sem

from .metrics.medqa_accuracy.medqa_accuracy import wilson_interval
from .metrics.paired_mcq_comparison.paired_mcq_comparison import paired as paired

ALPHA = 0.05
BINS = 10  # of the calibration error
POINTS = 20  # of the risk-coverage curve
Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """An accuracy on `n` questions with its 95 % Wilson interval."""

    n: int
    accuracy: float
    wilson_interval: Interval


def share_right(right: np.ndarray) -> Share:
    """The share of right answers, bool (n,)."""
    correct, n = int(right.sum()), len(right)
    return Share(n, correct / n, wilson_interval(correct, n))


def p_against_chance(correct: int, n: int, chance: float) -> float:
    """Two-sided p-value of the exact binomial test of an accuracy against chance."""
    return float(binomtest(correct, n, chance).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), which control the chance of any false rejection."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def in_words(difference: float, p_value: float, other: str) -> str:
    """Whether an accuracy differs from another, in words.

    >>> in_words(0.02, 0.2, "chance"), in_words(-0.1, 0.001, "always A")
    ('not distinguishable from chance (p = 0.2)', 'below always A (p = 0.001)')
    """
    side = "above" if difference > 0 else "below"
    return f"{'not distinguishable from' if p_value >= ALPHA else side} {other} (p = {p_value:.2g})"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate that at least one of `k` samples of a question is right (Chen et al. 2021).

    >>> pass_at_k(samples=4, right=1, k=2)
    0.5
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def option_nll(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Negative log-likelihoods (n,) of the right options among all options, in nats."""
    return -log_softmax(scores, axis=-1)[np.arange(len(gold)), gold]


@dataclass(frozen=True)
class Calibration:
    """Calibration of the probabilities among the options.

    `ece` is the expected calibration error over 10 bins of equal width (Guo et al. 2017), `brier` the squared error
    summed over the options (0.75 for a guess among four), `nll` in nats (1.386 for a guess).
    """

    ece: float
    brier: float
    nll: float
    bins: list[dict[str, float]]


def calibration(scores: np.ndarray, gold: np.ndarray) -> Calibration:
    """Calibration of scores (n, options) for right options (n,)."""
    probabilities = softmax(scores, axis=-1)
    confidence, right = probabilities.max(-1), scores.argmax(-1) == gold
    of_bin = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for inside in (of_bin == b for b in np.unique(of_bin)):
        means = {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
        bins.append({**means, "n": int(inside.sum())})
    ece = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(gold)
    target = np.eye(scores.shape[-1])[gold]
    brier = float(((probabilities - target) ** 2).sum(-1).mean())
    return Calibration(ece, brier, float(option_nll(scores, gold).mean()), bins)


@dataclass(frozen=True)
class RiskCoverage:
    """Accuracy on the share of questions that the model is most confident of (Geifman and El-Yaniv 2017).

    `aurc` is the error averaged over all coverages.
    """

    coverage: list[float]
    accuracy: list[float]
    aurc: float


def risk_coverage(scores: np.ndarray, gold: np.ndarray) -> RiskCoverage:
    """The curve at equally spaced coverages."""
    order = np.argsort(-softmax(scores, axis=-1).max(-1), kind="stable")
    right = (scores.argmax(-1) == gold)[order]
    n = len(right)
    accuracy = right.cumsum() / np.arange(1, n + 1)
    taken = np.unique(np.ceil(np.arange(1, POINTS + 1) / POINTS * n).astype(int))
    return RiskCoverage((taken / n).tolist(), accuracy[taken - 1].tolist(), float((1 - accuracy).mean()))


@dataclass(frozen=True)
class LabelBias:
    """How often each label was predicted and was right; `confusion` holds counts [gold][predicted].

    `chi_square` and `p_value` test whether predictions are distributed as the key is; None if the key lacks a label or
    nothing was predicted. The recall of a label that the key lacks is None.
    """

    predicted: dict[str, int]
    gold: dict[str, int]
    recall: dict[str, float | None]
    confusion: list[list[int]]
    chi_square: float | None
    p_value: float | None


def label_bias(predictions: np.ndarray, gold: np.ndarray, labels: tuple[str, ...]) -> LabelBias:
    """Count predictions (n,) by label."""
    options = range(len(labels))
    confusion = np.array([[((gold == g) & (predictions == p)).sum() for p in options] for g in options])
    predicted, key = confusion.sum(0), np.array([(gold == g).sum() for g in options])
    chi_square = p_value = None
    if key.all() and predicted.sum():
        chi_square, p_value = map(float, chisquare(predicted, key * predicted.sum() / key.sum()))
    return LabelBias(
        dict(zip(labels, predicted.tolist(), strict=True)),
        dict(zip(labels, key.tolist(), strict=True)),
        {label: float(confusion[i, i] / key[i]) if key[i] else None for i, label in enumerate(labels)},
        confusion.tolist(),
        chi_square,
        p_value,
    )


@dataclass(frozen=True)
class Permutations:
    """Accuracies over several orders of the options; a constant letter has a mean of exactly chance.

    The standard error is over questions. `averaged_accuracy` is that of the option with the highest mean probability,
    `consistency` the share of questions with the same predicted option in all orders.
    """

    orders: int
    mean_accuracy: float
    standard_error: float
    accuracies: list[float]
    averaged_accuracy: float
    consistency: float
    all_correct: float


def permutation_metrics(
    scores: np.ndarray, gold: np.ndarray, orders: list[tuple[int, ...]]
) -> tuple[Permutations, np.ndarray]:
    """Metrics over several orders, and the predictions (n,) of the averaged probabilities.

    Args:
        scores: (n, orders, 4), of the option in each place, or of its letter.
        gold: (n,), index of the right option in the file's own order.
    """
    order = np.array(orders)  # order[r, place] is the option in that place
    chosen = order[np.arange(len(orders)), scores.argmax(-1)]  # (n, orders)
    right = chosen == gold[:, None]
    averaged = option_probabilities(scores, order).mean(1).argmax(-1)
    of_question = right.mean(1)
    measured = Permutations(
        orders=len(orders),
        mean_accuracy=float(of_question.mean()),
        standard_error=float(sem(of_question)),
        accuracies=right.mean(0).tolist(),
        averaged_accuracy=float((averaged == gold).mean()),
        consistency=float((chosen == chosen[:, :1]).all(1).mean()),
        all_correct=float(right.all(1).mean()),
    )
    return measured, averaged


def option_probabilities(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Probabilities (n, orders, options) of each option in each order.

    Args:
        scores: (n, orders, options), of the option in each place, or of its letter.
        order: (orders, options), the option in each place.
    """
    in_place = softmax(scores, axis=-1)
    return np.take_along_axis(in_place, np.broadcast_to(order.argsort(-1), in_place.shape), axis=-1)
