"""How far probabilities over the options can be believed, and whether answers lean to a letter."""

from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import chisquare

BINS = 10


def option_probabilities(log_likelihoods: np.ndarray) -> np.ndarray:
    """Probabilities among the options alone: (n, options) from (n, options)."""
    return softmax(log_likelihoods, axis=-1)


def option_nll(log_likelihoods: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Nats of the right one among the options: (n,) from (n, options)."""
    return logsumexp(log_likelihoods, axis=-1) - log_likelihoods[np.arange(len(gold)), gold]


def calibration(log_likelihoods: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    """Calibration of log-likelihoods (n, options), as probabilities among the options, with the right ones (n,).

    Returns:
        `ece`: expected calibration error over 10 bins of equal width (Guo et al. 2017); `bins` with the mean
        confidence, accuracy and number of each that is not empty; `brier`: squared distance from the right answer,
        summed over the options (0.75 for a guess among four); `nll`: nats of the right option (1.386 for a guess).
    """
    n, probabilities = len(gold), option_probabilities(log_likelihoods)
    confidence, right = probabilities.max(-1), log_likelihoods.argmax(-1) == gold
    of_bin = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {
            "confidence": float(confidence[of_bin == b].mean()),
            "accuracy": float(right[of_bin == b].mean()),
            "n": int((of_bin == b).sum()),
        }
        for b in np.unique(of_bin)
    ]
    target = np.zeros_like(probabilities)
    target[np.arange(n), gold] = 1
    return {
        "ece": sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / n,
        "brier": float(((probabilities - target) ** 2).sum(-1).mean()),
        "nll": float(option_nll(log_likelihoods, gold).mean()),
        "bins": bins,
    }


def risk_coverage(log_likelihoods: np.ndarray, gold: np.ndarray, points: int = 20) -> dict[str, Any]:
    """Accuracy on the share of questions that the model is surest of (Geifman and El-Yaniv 2017).

    Returns:
        `coverage` and `accuracy`, `points` of each, and `aurc`: the error averaged over all coverages.
    """
    order = np.argsort(-option_probabilities(log_likelihoods).max(-1), kind="stable")
    right = (log_likelihoods.argmax(-1) == gold)[order]
    n = len(right)
    accuracy = right.cumsum() / np.arange(1, n + 1)
    taken = np.unique(np.ceil(np.arange(1, points + 1) / points * n).astype(int))
    return {
        "coverage": (taken / n).tolist(),
        "accuracy": accuracy[taken - 1].tolist(),
        "aurc": float((1 - accuracy).mean()),
    }


def label_bias(predictions: np.ndarray, gold: np.ndarray, labels: tuple[str, ...]) -> dict[str, Any]:
    """How often each label was predicted and was right.

    Args:
        predictions: (n,), -1 where there is none.

    Returns:
        `predicted`, `gold`: counts by label; `recall` of each label, null where it never is right; `confusion`
        [gold][predicted]; `chi_square` and `p_value` of the hypothesis that predictions are distributed as the key is
        (null where the key lacks a label or nothing was predicted).
    """
    options = range(len(labels))
    confusion = [[int(((gold == g) & (predictions == p)).sum()) for p in options] for g in options]
    predicted = np.array(confusion).sum(0)
    key = np.array([(gold == g).sum() for g in options])
    bias: dict[str, Any] = {
        "predicted": dict(zip(labels, predicted.tolist(), strict=True)),
        "gold": dict(zip(labels, key.tolist(), strict=True)),
        "recall": {label: confusion[i][i] / int(key[i]) if key[i] else None for i, label in enumerate(labels)},
        "confusion": confusion,
        "chi_square": None,
        "p_value": None,
    }
    if key.all() and predicted.sum():
        test = chisquare(predicted, key * predicted.sum() / key.sum())
        bias |= {"chi_square": float(test.statistic), "p_value": float(test.pvalue)}
    return bias
