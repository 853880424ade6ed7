"""Orders of the options: a constant letter scores exactly chance, and a known option wins in all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import sem

from modeling_pure.medqa.formulations import ORDERS
from modeling_pure.medqa.statistics import option_probabilities, permutation_metrics


def scores_of(questions, orders, prefer) -> np.ndarray:
    """Log-likelihoods (n, orders, 4) of a model whose scores of a question are `prefer(question)`."""
    reordered = [question.reordered(order) for question in questions for order in orders]
    return np.array([prefer(question) for question in reordered], float).reshape(len(questions), len(orders), 4)


@pytest.mark.parametrize("number", [4, 24])
@pytest.mark.parametrize("letter", range(4))
def test_a_constant_letter_scores_exactly_chance(questions, number, letter):
    orders = ORDERS[number]
    scores = scores_of(questions, orders, lambda question: [i == letter for i in range(4)])
    metrics, _ = permutation_metrics(scores, np.array([q.answer for q in questions]), orders)
    assert metrics.mean_accuracy == 0.25
    assert metrics.standard_error == 0
    assert metrics.consistency == metrics.all_correct == 0
    assert metrics.accuracies[0] == np.mean([q.answer == letter for q in questions])


@pytest.mark.parametrize("number", [1, 4, 24])
def test_a_model_that_ignores_order_is_consistent(questions, number):
    """It prefers the alphabetically last option in every order, so that averaging changes nothing."""
    orders = ORDERS[number]

    def prefer(question):
        ranks = sorted(question.options)
        return [ranks.index(option) for option in question.options]

    gold = np.array([q.answer for q in questions])
    metrics, averaged = permutation_metrics(scores_of(questions, orders, prefer), gold, orders)
    chosen = [q.options.index(max(q.options)) for q in questions]
    assert averaged.tolist() == chosen
    assert metrics.consistency == 1
    shares = [getattr(metrics, name) for name in ("mean_accuracy", "averaged_accuracy", "all_correct")]
    assert shares == pytest.approx([np.mean(np.equal(chosen, gold))] * 3)


@given(st.integers(0, 10_000), st.sampled_from([4, 24]))
def test_metrics_are_those_of_a_plain_loop(seed, number):
    rng, orders = np.random.default_rng(seed), ORDERS[number]
    scores, gold = rng.normal(size=(5, number, 4)), rng.integers(0, 4, 5)
    metrics, averaged = permutation_metrics(scores, gold, orders)
    chosen, means = [], []
    for row in scores:
        chosen.append([order[int(place.argmax())] for order, place in zip(orders, row, strict=True)])
        total = [0.0] * 4
        for order, place in zip(orders, row, strict=True):
            for option, value in zip(order, np.exp(place) / np.exp(place).sum(), strict=True):
                total[option] += value
        means.append(int(np.argmax(total)))
    right = [[option == answer for option in row] for row, answer in zip(chosen, gold, strict=True)]
    assert averaged.tolist() == means
    assert metrics.mean_accuracy == pytest.approx(np.mean(right))
    assert metrics.standard_error == pytest.approx(sem(np.mean(right, axis=1)))
    assert metrics.consistency == np.mean([len(set(row)) == 1 for row in chosen])
    assert metrics.all_correct == np.mean([all(row) for row in right])


def test_probabilities_follow_the_options_of_any_number():
    """Five options, likelier the further back in the question's own order, in five rotations."""
    order = np.array([[*range(i, 5), *range(i)] for i in range(5)])
    of_option = np.arange(1, 6) / 15
    found = option_probabilities(np.log(of_option[order])[None], order)
    assert found == pytest.approx(np.broadcast_to(of_option, (1, 5, 5)))


def test_orders_are_distinct_and_start_with_the_files_own():
    for number, orders in ORDERS.items():
        assert len(set(orders)) == number
        assert orders[0] == (0, 1, 2, 3)
        for place in range(4):
            assert number == 1 or {sum(order[place] == option for order in orders) for option in range(4)} == {
                number // 4
            }
