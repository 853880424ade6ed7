"""Calibration and bias against known values, scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from modeling_pure.medqa.statistics import calibration, label_bias, risk_coverage

LETTERS = tuple("ABCD")


def random_answers(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=2, size=(n, 4)) - 5, rng.integers(0, 4, n)


def test_a_guess_has_the_known_values():
    measured = calibration(np.full((8, 4), -11.0), np.arange(8) % 4)
    assert measured.brier == 0.75
    assert measured.nll == pytest.approx(np.log(4))
    assert measured.ece == pytest.approx(0)
    assert measured.bins == [{"confidence": 0.25, "accuracy": 0.25, "n": 8}]


def test_a_confidently_wrong_model_has_the_worst_finite_values():
    measured = calibration(np.array([[0.0, -2000, -2000, -2000]] * 3), np.array([1, 2, 3]))
    assert measured.ece == 1
    assert measured.brier == 2
    assert measured.nll == 2000


@given(st.integers(0, 10_000))
def test_scores_are_those_of_plain_loops(seed):
    scores, gold = random_answers(seed)
    measured, p = calibration(scores, gold), softmax(scores, axis=-1)
    assert measured.nll == pytest.approx(np.mean([-np.log(row[g]) for row, g in zip(p, gold, strict=True)]))
    assert measured.brier == pytest.approx(
        np.mean([sum((row[i] - (i == g)) ** 2 for i in range(4)) for row, g in zip(p, gold, strict=True)])
    )
    gaps = 0.0
    for b in range(10):
        inside = [(row.max(), row.argmax() == g) for row, g in zip(p, gold, strict=True) if int(row.max() * 10) == b]
        if inside:
            gaps += len(inside) * abs(np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside]))
    assert measured.ece == pytest.approx(gaps / len(gold))
    assert sum(b["n"] for b in measured.bins) == len(gold)


@given(st.integers(0, 10_000))
def test_risk_coverage_curve_ends_at_the_accuracy(seed):
    scores, gold = random_answers(seed, n=37)
    curve = risk_coverage(scores, gold)
    right = scores.argmax(-1) == gold
    assert curve.coverage[-1] == 1
    assert curve.accuracy[-1] == pytest.approx(right.mean())
    surest = np.argsort(-softmax(scores, axis=-1).max(-1), kind="stable")
    taken = round(curve.coverage[3] * 37)
    assert curve.accuracy[3] == pytest.approx(right[surest[:taken]].mean())
    assert curve.aurc == pytest.approx(np.mean([1 - right[surest[:k]].mean() for k in range(1, 38)]))


def test_confusion_and_recall_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, gold = random_answers(3, n=200)
    bias = label_bias(scores.argmax(-1), gold, LETTERS)
    assert bias.confusion == metrics.confusion_matrix(gold, scores.argmax(-1)).tolist()
    recall = metrics.recall_score(gold, scores.argmax(-1), average=None)
    assert list(bias.recall.values()) == pytest.approx(recall.tolist())


def test_a_constant_letter_is_significant():
    gold = np.arange(400) % 4
    assert label_bias(np.zeros(400, int), gold, LETTERS).p_value < 1e-12
    even = label_bias(gold[::-1], gold, LETTERS)
    assert even.chi_square == 0
    assert even.p_value == 1


def test_undefined_statistics_are_none():
    gold = np.array([0, 0, 1, 1])
    bias = label_bias(np.array([0, -1, 1, 1]), gold, LETTERS)
    assert bias.p_value is None
    assert bias.recall["C"] is None
    assert bias.predicted == {"A": 1, "B": 2, "C": 0, "D": 0}
    assert bias.recall["A"] == 0.5
    assert label_bias(np.full(4, -1), np.arange(4), LETTERS).p_value is None
