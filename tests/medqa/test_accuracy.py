"""Metrics that are computed from records."""

from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.medqa.accuracy import measure
from modeling_pure.medqa.formulations import BY_TEXT, ORDERS, Formulation
from modeling_pure.medqa.statistics import pass_at_k
from modeling_pure.medqa.tasks import MEDQA

REASONED = Formulation("generate", "reasoned")


@given(st.data())
def test_pass_at_k_equals_the_share_of_draws_with_a_right_sample(data):
    samples = data.draw(st.integers(1, 8))
    right = [data.draw(st.booleans()) for _ in range(samples)]
    for k in range(1, samples + 1):
        draws = [any(right[i] for i in draw) for draw in combinations(range(samples), k)]
        assert pass_at_k(samples, sum(right), k) == pytest.approx(np.mean(draws))


def written(answers: list[int | None], right: int, **lists) -> dict:
    """A record of completions of 10 tokens each."""
    plain = {"contradicts": False, "finished": True, "lengths": 10}
    record = {name: [value] * len(answers) for name, value in plain.items()}
    return {"answers": answers, "rewards": [float(a == right) for a in answers], "cut": False, **record, **lists}


def test_completions_are_counted(questions):
    first, second = questions[:2]
    one, other = (first.answer + 1) % 4, (first.answer + 2) % 4
    records = [
        written([one, first.answer, None, first.answer, other, None], first.answer, reasoning_lengths=[4] * 6),
        written(
            *([None] * 6, second.answer),
            **{"finished": [False, True] * 3, "contradicts": [True] + [False] * 5, "reasoning_lengths": [10] * 6},
        ),
    ]
    scored = measure(MEDQA, [first, second], REASONED, records, ORDERS[1])
    assert scored.predictions.tolist() == [first.answer, -1]
    found = asdict(scored.metrics.generation)
    shares = {name: found[name] * 12 for name in ("sample_accuracy", "parse_rate", "contradictions", "unfinished")}
    assert shares == pytest.approx({"sample_accuracy": 2, "parse_rate": 4, "contradictions": 1, "unfinished": 3})
    assert (found["samples"], found["mean_length"], found["mean_reasoning_length"]) == (6, 10, 7)
    expected = {"1": 2 / 6 / 2, "2": (1 - 6 / 15) / 2, "4": (1 - 1 / 15) / 2, "6": 0.5}
    assert found["pass_at_k"] == pytest.approx(expected)


def test_formats_without_reasons_have_no_reasoning_length(questions):
    records = [written([0], question.answer) for question in questions]
    found = asdict(measure(MEDQA, questions, REASONED, records, ORDERS[1]).metrics.generation)
    assert found["mean_reasoning_length"] is None
    assert found["pass_at_k"] == {"1": found["sample_accuracy"]}


@pytest.mark.parametrize("orders", [1, 4])
def test_the_sum_decides_between_texts(questions, orders):
    """Each way prefers another option; the sum decides, also for the effects of order."""
    record = {
        "log_likelihoods": [-4.0, -5.0, -6.0, -9.0],  # per token -2, -1, -6, -9; less the next -3, -1, 14, -5
        "tokens": [2, 5, 1, 1],
        "unconditional": [-1.0, -4.0, -20.0, -4.0],
        "cut": False,
    }
    records = [record] * (len(questions) * orders)
    scored = measure(MEDQA, questions, BY_TEXT, records, ORDERS[orders])
    metrics = scored.metrics
    gold = [question.answer for question in questions]
    assert metrics.accuracy_by == {name: gold.count(i) / 120 for i, name in enumerate(("sum", "per_token", "pmi"))}
    assert set(scored.predictions) == {0}
    assert metrics.accuracy == metrics.accuracy_by["sum"]
    if orders == 4:
        assert metrics.permutations.mean_accuracy == 0.25
    else:
        assert metrics.permutations is None
