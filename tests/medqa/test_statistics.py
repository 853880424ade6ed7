"""Statistics against closed forms, brute force and a peer."""

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.medqa.statistics import exact_mcnemar, standard_error, wilson_interval


@given(st.lists(st.booleans(), min_size=2, max_size=300))
def test_standard_error_is_the_sample_standard_deviation_over_root_n(correct):
    assert standard_error(correct) == pytest.approx(np.std(correct, ddof=1) / sqrt(len(correct)), abs=1e-12)


def test_wilson_interval_of_always_a_on_medqa():
    low, high = wilson_interval(353, 1273)
    assert (round(low, 4), round(high, 4)) == (0.2534, 0.3025)


@given(st.integers(1, 200), st.data())
def test_wilson_interval_solves_its_equation(n, data):
    successes = data.draw(st.integers(0, n))
    p, z = successes / n, 1.959963984540054
    for bound in wilson_interval(successes, n):
        assert (p - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_two_sided_binomial_test(pairs):
    first, second = zip(*pairs, strict=True)
    result = exact_mcnemar(first, second)
    b, c = result["only_first"], result["only_second"]
    assert (b, c) == (sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs))
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert result["p_value"] == pytest.approx(min(1.0, 2 * tail))
