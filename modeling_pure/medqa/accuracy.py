"""Predictions and metrics of a formulation, from its records."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from . import statistics
from .formulations import Formulation, Order
from .metrics.medqa_accuracy.medqa_accuracy import accuracy_with_intervals
from .questions import Question
from .scorers import Record
from .tasks import Task

NEAR_TIE = 1e-4  # nats: an upper bound on the rounding error of a log-likelihood in fp32


@dataclass(frozen=True)
class Generation:
    """Completions: shares and means over all of them, lengths in tokens.

    `pass_at_k` maps k to the share of questions that at least one of k samples answers correctly.
    """

    samples: int
    sample_accuracy: float
    parse_rate: float
    contradictions: float
    unfinished: float
    mean_length: float
    mean_reasoning_length: float | None
    reward: float
    pass_at_k: dict[str, float]


@dataclass(frozen=True)
class Metrics:
    """The metrics of one formulation. Shares are from 0 to 1, intervals [low, high] at 95 %.

    Attributes:
        always: accuracy of each constant answer.
        near_ties: questions whose two best options are so close that rounding may decide.
        label_mass: mean total probability of the labels; for `letter`.
        accuracy_by: accuracy by each way to compare texts, the decisive one first; for `text` and `cloze`.
    """

    accuracy: float
    correct: int
    n: int
    standard_error: float
    wilson_interval: statistics.Interval
    bootstrap_interval: statistics.Interval
    balanced_accuracy: float
    chance: float
    always: dict[str, float]
    bias: statistics.LabelBias
    cut_prompts: int
    near_ties: int | None = None
    calibration: statistics.Calibration | None = None
    risk_coverage: statistics.RiskCoverage | None = None
    label_mass: float | None = None
    accuracy_by: dict[str, float] | None = None
    permutations: statistics.Permutations | None = None
    generation: Generation | None = None


@dataclass(frozen=True)
class Scored:
    """A formulation with its records, metrics and predictions.

    Attributes:
        records: of each question in each of `orders`.
        predictions: (n,), index of the option in the file's own order; -1 for no answer.
        scores: (n, options), whose argmax gives the predictions; None for generated answers.
        averaged: (n,), predictions from the probabilities averaged over several orders of the options.
    """

    formulation: Formulation
    orders: list[Order]
    records: list[Record]
    metrics: Metrics
    predictions: np.ndarray
    scores: np.ndarray | None = None
    averaged: np.ndarray | None = None


def measure(
    task: Task, questions: list[Question], formulation: Formulation, records: list[Record], orders: list[Order]
) -> Scored:
    """All metrics of a formulation.

    Args:
        records: of each question in each of `orders`, the file's own order first.
    """
    gold = np.array([question.answer for question in questions])
    if formulation.scorer == "generate":
        counts = [Counter(answer for answer in record["answers"] if answer is not None) for record in records]
        # The most common answer; of equals, the first option.
        predictions = np.array([max(sorted(count), key=count.__getitem__, default=-1) for count in counts])
        metrics = replace(
            basic_metrics(task, predictions, gold, records), generation=measure_generation(records, gold)
        )
        return Scored(formulation, orders, records, metrics, predictions)
    own = records[:: len(orders)]
    totals = np.array([record["log_likelihoods"] for record in records]).reshape(len(gold), len(orders), -1)
    ways = score_ways(formulation.scorer, own, totals[:, 0])
    scores = next(iter(ways.values()))
    predictions, top = scores.argmax(-1), np.sort(scores, axis=-1)
    by_characters = formulation.scorer == "cloze"
    rounding = NEAR_TIE / np.array([max(1, min(record["characters"])) if by_characters else 1 for record in own])
    by_way = {name: float((each.argmax(-1) == gold).mean()) for name, each in ways.items()}
    several = statistics.permutation_metrics(totals, gold, orders) if len(orders) > 1 else (None, None)
    metrics = replace(
        basic_metrics(task, predictions, gold, own),
        near_ties=int((top[:, -1] - top[:, -2] < rounding).sum()),
        calibration=statistics.calibration(scores, gold),
        risk_coverage=statistics.risk_coverage(scores, gold),
        label_mass=float(np.exp(scores).sum(-1).mean()) if formulation.scorer == "letter" else None,
        accuracy_by=by_way if len(ways) > 1 else None,
        permutations=several[0],
    )
    return Scored(formulation, orders, records, metrics, predictions, scores, several[1])


def basic_metrics(task: Task, predictions: np.ndarray, gold: np.ndarray, records: list[Record]) -> Metrics:
    """Accuracy with its intervals, chance, and the accuracy of each constant answer."""
    bias = statistics.label_bias(predictions, gold, task.labels)
    return Metrics(
        **accuracy_with_intervals(int((predictions == gold).sum()), len(gold)),
        balanced_accuracy=float(np.mean([recall for recall in bias.recall.values() if recall is not None])),
        chance=task.chance,
        always={label: float((gold == i).mean()) for i, label in enumerate(task.labels)},
        bias=bias,
        cut_prompts=sum(record["cut"] for record in records),
    )


def score_ways(scorer: str, records: list[Record], totals: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (n, options) by way of comparing options, the decisive one first.

    For `text` the sum decides; for `cloze` the mean over characters does, which is lm-evaluation-harness's acc_norm.
    """
    if scorer == "letter":
        return {"sum": totals}
    pmi = totals - np.array([record["unconditional"] for record in records])
    if scorer == "text":
        return {"sum": totals, "per_token": totals / np.array([record["tokens"] for record in records]), "pmi": pmi}
    characters = np.maximum(np.array([record["characters"] for record in records]), 1)
    return {"per_character": totals / characters, "sum": totals, "pmi": pmi}


def measure_generation(records: list[Record], gold: np.ndarray) -> Generation:
    """Metrics of the completions."""
    samples = np.array([[-1 if answer is None else answer for answer in record["answers"]] for record in records])
    right, number = samples == gold[:, None], samples.shape[1]

    def mean_of(name: str) -> float:
        return float(np.mean([record[name] for record in records]))

    return Generation(
        samples=number,
        sample_accuracy=float(right.mean()),
        parse_rate=float((samples >= 0).mean()),
        contradictions=mean_of("contradicts"),
        unfinished=1 - mean_of("finished"),
        mean_length=mean_of("lengths"),
        mean_reasoning_length=mean_of("reasoning_lengths") if "reasoning_lengths" in records[0] else None,
        reward=mean_of("rewards"),
        pass_at_k={
            str(k): float(np.mean([statistics.pass_at_k(number, int(count), k) for count in right.sum(1)]))
            for k in sorted({*(2**i for i in range(number.bit_length())), number})
        },
    )


def slices(questions: list[Question], predictions: np.ndarray) -> dict[str, statistics.Share]:
    """Accuracy by `meta_info`, if there are several kinds, and by quartile of the question's length in words."""
    right = predictions == np.array([question.answer for question in questions])
    kinds = np.array([question.meta_info for question in questions])
    words = np.array([len(question.question.split()) for question in questions])
    parts = {f"meta_info {kind or '(none)'}": kinds == kind for kind in np.unique(kinds)}
    parts = parts if len(parts) > 1 else {}
    edges = np.unique(np.quantile(words, [0.25, 0.5, 0.75], method="lower"))
    quarter = np.searchsorted(edges, words)
    for q in np.unique(quarter):
        of_quarter = quarter == q
        shortest, longest = words[of_quarter].min(), words[of_quarter].max()
        parts[f"stem of {shortest}{f' to {longest}' if longest > shortest else ''} words"] = of_quarter
    return {name: statistics.share_right(right[part]) for name, part in parts.items()}
