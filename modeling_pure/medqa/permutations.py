"""The same questions with their options in other orders: what is left of an accuracy that hung on a letter."""

import itertools

import numpy as np

from .calibration import option_probabilities
from .questions import LETTERS, Question

IDENTITY = tuple(range(len(LETTERS)))
ORDERS: dict[int, list[tuple[int, ...]]] = {
    1: [IDENTITY],
    4: [IDENTITY[r:] + IDENTITY[:r] for r in IDENTITY],
    24: list(itertools.permutations(IDENTITY)),
}
"""Orders of the options by their number, the file's own first. Each option stands equally often in each place."""


def permuted(questions: list[Question], orders: list[tuple[int, ...]]) -> list[Question]:
    """Each question in each order: question 0 in all of them, then question 1."""
    return [question.reordered(order) for question in questions for order in orders]


def permutation_metrics(
    log_likelihoods: np.ndarray, gold: np.ndarray, orders: list[tuple[int, ...]]
) -> tuple[dict[str, float | list[float]], np.ndarray]:
    """What several orders say together.

    Args:
        log_likelihoods: (n, orders, 4), of the option in each place, or of its letter.
        gold: (n,), index of the right option in the file's own order.

    Returns:
        `mean_accuracy` over orders (a constant letter scores exactly chance) with its `standard_error` over questions,
        `accuracies` of each order, `averaged_accuracy` of the option whose probability among the four is highest on
        average, `consistency` (share of questions whose option is the same in all orders) and `all_correct`; and the
        averaged predictions, (n,).
    """
    order = np.array(orders)  # order[r, place] is the option that stands there
    chosen = order[np.arange(len(orders)), log_likelihoods.argmax(-1)]  # (n, orders)
    right = chosen == gold[:, None]
    in_place = option_probabilities(log_likelihoods)
    of_option = np.take_along_axis(in_place, np.broadcast_to(order.argsort(-1), in_place.shape), axis=-1)
    averaged = of_option.mean(1).argmax(-1)
    of_question = right.mean(1)
    n = len(gold)
    return {
        "orders": len(orders),
        "mean_accuracy": float(of_question.mean()),
        "standard_error": float(of_question.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
        "accuracies": right.mean(0).tolist(),
        "averaged_accuracy": float((averaged == gold).mean()),
        "consistency": float((chosen == chosen[:, :1]).all(1).mean()),
        "all_correct": float(right.all(1).mean()),
    }, averaged
