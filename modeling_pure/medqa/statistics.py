"""Statistics of answers: intervals, tests, calibration, bias to a label, and what other orders of the options change.

Arrays of predictions hold the index of an option, or -1 if there is none. Scores are log-likelihoods (n, options).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest, chisquare, sem

from .metrics.medqa_accuracy.medqa_accuracy import wilson_interval
from .metrics.paired_mcq_comparison.paired_mcq_comparison import bootstrap_interval, exact_mcnemar

ALPHA = 0.05
BINS = 10
Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """An accuracy on `n` questions with its 95 % Wilson interval."""

    n: int
    accuracy: float
    wilson_interval: Interval


def share_right(right: np.ndarray) -> Share:
    """The accuracy from which answers are right, bool (n,)."""
    correct, n = int(right.sum()), len(right)
    return Share(n, correct / n, wilson_interval(correct, n))


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions: the second's accuracy less the first's, and the exact McNemar test."""

    difference: float
    bootstrap_interval: Interval
    only_first: int
    only_second: int
    p_value: float


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare which questions two models have right, bool (n,) each."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    interval = bootstrap_interval(only_first, only_second, len(first))
    difference = (only_second - only_first) / len(first)
    return Paired(difference, interval, only_first, only_second, exact_mcnemar(only_first, only_second))


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


def in_words(difference: float, p_value: float, other: str) -> str:
    """Whether an accuracy differs from another one, in words.

    >>> in_words(0.02, 0.2, "chance"), in_words(-0.1, 0.001, "always A")
    ('not distinguishable from chance (p = 0.2)', 'below always A (p = 0.001)')
    """
    side = "above" if difference > 0 else "below"
    return f"{'not distinguishable from' if p_value >= ALPHA else side} {other} (p = {p_value:.2g})"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of `k` of a question's samples is right (Chen et al. 2021): unbiased.

    >>> pass_at_k(samples=4, right=1, k=2)
    0.5
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def option_nll(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Nats of the right one among the options: (n,) from (n, options)."""
    return -log_softmax(scores, axis=-1)[np.arange(len(gold)), gold]


@dataclass(frozen=True)
class Calibration:
    """Calibration of the probabilities among the options.

    `ece` is the expected calibration error over 10 bins of equal width (Guo et al. 2017), `brier` the squared distance
    from the right answer, summed over the options (0.75 for a guess among four), `nll` in nats (1.386 for a guess).
    """

    ece: float
    brier: float
    nll: float
    bins: list[dict[str, float]]


def calibration(scores: np.ndarray, gold: np.ndarray) -> Calibration:
    """Calibration of scores (n, options) with the right options (n,)."""
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


def risk_coverage(scores: np.ndarray, gold: np.ndarray, points: int = 20) -> RiskCoverage:
    """The curve at some coverages."""
    order = np.argsort(-softmax(scores, axis=-1).max(-1), kind="stable")
    right = (scores.argmax(-1) == gold)[order]
    n = len(right)
    accuracy = right.cumsum() / np.arange(1, n + 1)
    taken = np.unique(np.ceil(np.arange(1, points + 1) / points * n).astype(int))
    return RiskCoverage((taken / n).tolist(), accuracy[taken - 1].tolist(), float((1 - accuracy).mean()))


@dataclass(frozen=True)
class LabelBias:
    """How often each label was predicted and was right (`confusion`: counts [gold][predicted]).

    `chi_square` and `p_value` are of the hypothesis that predictions are distributed as the key is; None if the key
    lacks a label or nothing was predicted. The recall of a label that is never right is None, too.
    """

    predicted: dict[str, int]
    gold: dict[str, int]
    recall: dict[str, float | None]
    confusion: list[list[int]]
    chi_square: float | None
    p_value: float | None


def label_bias(predictions: np.ndarray, gold: np.ndarray, labels: tuple[str, ...]) -> LabelBias:
    """Count predictions (n,) of each label."""
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
    """Accuracies over several orders of the options; the mean of a constant letter is exactly chance.

    The standard error is over questions, `averaged_accuracy` that of the option whose probability is highest on
    average, `consistency` the share of questions with the same predicted option in all orders.
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
    order = np.array(orders)  # order[r, place] is the option that stands there
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
