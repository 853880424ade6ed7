"""Multiple tests, and their results in words."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from modeling_pure.medqa.statistics import holm, in_words, p_against_chance


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_agrees_with_the_step_down_procedure(p_values):
    """The definition: from the smallest p-value on, stop at the first above alpha / (number left)."""
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, i in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[i] * (len(p_values) - rank) > alpha:
                break
            rejected.add(int(i))
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert all(a >= b - 1e-12 for a, b in zip(adjusted, false_discovery_control(p_values), strict=True))


def test_one_test_needs_no_adjustment():
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_chance_on_medqa():
    """With 1,273 questions a two-sided test at 5 % is significant from 27.4 % on."""
    assert p_against_chance(348, 1273, 0.25) > 0.05 > p_against_chance(350, 1273, 0.25)
    assert p_against_chance(4, 16, 0.25) == 1.0


def test_words_give_the_direction_of_a_difference():
    above, below, either = (in_words(*found, "chance") for found in ((0.1, 0.001), (-0.1, 0.001), (0.1, 0.05)))
    assert [side in words for words in (above, below, either) for side in ("above", "below")] == [
        *(True, False),
        *(False, True),
        *(False, False),
    ]
    assert all("chance" in words for words in (above, below, either))
