"""From the records of a scorer to metrics: accuracy with its uncertainty, and what has to stand beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .asked import Record
from .calibration import calibration, label_bias, risk_coverage
from .formulations import Formulation
from .metrics import load_metric
from .permutations import permutation_metrics
from .questions import Question
from .schema import Slice
from .statistics import pass_at_k, share_right
from .tasks import Task

NEAR_TIE = 1e-4  # nats: what rounding in fp32 may do to a log-likelihood, with room
SMALL_SLICE = 100


@dataclass(frozen=True)
class Answers:
    """What the records of a scorer come to.

    Args:
        predictions: (n,), index of the option in the file's own order; -1 where there is none.
        metrics: what only this scorer measures.
        scores: (n, options), whose argmax the predictions are; None if text was generated.
        rounding: (n,), how near two scores may be for rounding to decide between them.
        averaged: (n,), predictions of the probabilities averaged over several orders of the options.
    """

    predictions: np.ndarray
    metrics: dict[str, Any]
    scores: np.ndarray | None = None
    rounding: np.ndarray | None = None
    averaged: np.ndarray | None = None


@dataclass(frozen=True)
class Scored:
    """A formulation with its records, of each question in each of `orders`, and what they come to."""

    formulation: Formulation
    orders: list[tuple[int, ...]]
    records: list[Record]
    metrics: dict[str, Any]
    answers: Answers

    @property
    def cut_prompts(self) -> int:
        """How many questions' prompts were cut to the context."""
        return sum(record["cut"] for record in self.records[:: len(self.orders)])


def measure(
    task: Task, questions: list[Question], scorer: str, records: list[Record], orders: list[tuple[int, ...]]
) -> tuple[dict[str, Any], Answers]:
    """All metrics of an evaluation, as `eval.json` holds them, and the answers they are of.

    Args:
        records: of each question in each of `orders`, the file's own order first.
    """
    gold = np.array([question.answer for question in questions])
    answers = READERS[scorer](records, gold, orders)
    metrics = accuracy_metrics(task, answers.predictions, gold)
    metrics["bias"] = label_bias(answers.predictions, gold, task.labels)
    if answers.scores is not None:
        top = np.sort(answers.scores, axis=-1)
        metrics["near_ties"] = int((top[:, -1] - top[:, -2] < answers.rounding).sum())
        metrics["calibration"] = calibration(answers.scores, gold)
        metrics["risk_coverage"] = risk_coverage(answers.scores, gold)
    return {**metrics, **answers.metrics}, answers


def accuracy_metrics(task: Task, predictions: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    """Accuracy with its intervals, beside chance and each constant answer."""
    measured: dict[str, Any] = load_metric("medqa_accuracy").compute(predictions=predictions, references=gold)
    del measured["recall"]
    return {
        **measured,
        "chance": task.chance,
        "always": {label: float((gold == i).mean()) for i, label in enumerate(task.labels)},
    }


def read_letters(records: list[Record], gold: np.ndarray, orders: list[tuple[int, ...]]) -> Answers:
    """`label_mass` (probability of all labels together, the mean) and, of several orders, `permutations`."""
    return in_orders(records, gold, orders, lambda own: {"label_mass": float(np.exp(own).sum(-1).mean())})


def read_texts(records: list[Record], gold: np.ndarray, orders: list[tuple[int, ...]]) -> Answers:
    """`text`: accuracy by sum (this one counts), by mean over tokens, and by PMI; of several orders `permutations`."""
    own = records[:: len(orders)]
    tokens, alone = (np.array([record[name] for record in own]) for name in ("tokens", "unconditional"))

    def ways(total: np.ndarray) -> dict[str, Any]:
        return {"text": accuracies({"sum": total, "per_token": total / tokens, "pmi": total - alone}, gold)}

    return in_orders(records, gold, orders, ways)


def in_orders(
    records: list[Record],
    gold: np.ndarray,
    orders: list[tuple[int, ...]],
    measured: Callable[[np.ndarray], dict[str, Any]],
) -> Answers:
    """The likeliest option in the file's own order counts; `measured` are metrics of its log-likelihoods."""
    scores = np.array([record["log_likelihoods"] for record in records]).reshape(len(gold), len(orders), -1)
    own, averaged = scores[:, 0], None
    metrics = measured(own)
    if len(orders) > 1:
        metrics["permutations"], averaged = permutation_metrics(scores, gold, orders)
    return Answers(own.argmax(-1), metrics, own, np.full(len(gold), NEAR_TIE), averaged)


def read_cloze(records: list[Record], gold: np.ndarray, orders: list[tuple[int, ...]]) -> Answers:
    """Accuracy by sum, by mean over characters (lm-evaluation-harness's acc_norm: this one counts), and by PMI."""
    total, alone, characters = (
        np.array([record[name] for record in records]) for name in ("log_likelihoods", "unconditional", "characters")
    )
    characters = np.maximum(characters, 1)
    ways = {"sum": total, "per_character": total / characters, "pmi": total - alone}
    scores = ways["per_character"]
    return Answers(scores.argmax(-1), {"cloze": accuracies(ways, gold)}, scores, NEAR_TIE / characters.min(-1))


def accuracies(ways: dict[str, np.ndarray], gold: np.ndarray) -> dict[str, float]:
    """The accuracy of each of several scores (n, options)."""
    return {name: float((scores.argmax(-1) == gold).mean()) for name, scores in ways.items()}


def read_generations(records: list[Record], gold: np.ndarray, orders: list[tuple[int, ...]]) -> Answers:
    """What was written: the majority of a question's samples is what counts, the earlier option among equals.

    `generation` has the number of `samples` of a question; of all completions `sample_accuracy`, `parse_rate`,
    `contradictions`, `unfinished`, `mean_length`, `mean_reasoning_length` (null in formats without reasons) and
    `reward`; and `pass_at_k`, the share of questions that one of k samples has right.
    """
    answers = [record["answers"] for record in records]
    samples = np.array([[-1 if answer is None else answer for answer in row] for row in answers])
    right, number = samples == gold[:, None], samples.shape[1]
    reasoned = "reasoning_lengths" in records[0]
    generation = {
        "samples": number,
        "sample_accuracy": float(right.mean()),
        "parse_rate": float((samples >= 0).mean()),
        "contradictions": mean_of(records, "contradicts"),
        "unfinished": 1 - mean_of(records, "finished"),
        "mean_length": mean_of(records, "lengths"),
        "mean_reasoning_length": mean_of(records, "reasoning_lengths") if reasoned else None,
        "reward": mean_of(records, "rewards"),
        "pass_at_k": {
            str(k): float(np.mean([pass_at_k(number, int(count), k) for count in right.sum(1)]))
            for k in sorted({*(2**i for i in range(number.bit_length())), number})
        },
    }
    return Answers(np.array([majority(row) for row in answers]), {"generation": generation})


def mean_of(records: list[Record], name: str) -> float:
    """The mean over all completions of all questions."""
    return float(np.mean([record[name] for record in records]))


def majority(answers: list[int | None]) -> int:
    """The commonest answer, the earlier option among equals; -1 where no completion could be read."""
    read = [answer for answer in answers if answer is not None]
    return min(set(read), key=lambda answer: (-read.count(answer), answer), default=-1)


READERS = {"letter": read_letters, "text": read_texts, "cloze": read_cloze, "generate": read_generations}


def slices(questions: list[Question], predictions: np.ndarray) -> dict[str, Slice]:
    """Accuracy on parts of the questions: by `meta_info` where it tells several kinds, and by the stem's length.

    Each has `n`, `accuracy`, its Wilson interval, and `small` where less than 100 questions carry it.
    """
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
    return {name: slice_metrics(right[part]) for name, part in parts.items()}


def slice_metrics(right: np.ndarray) -> Slice:
    """Accuracy of some questions, and whether they are few."""
    return {**share_right(right), "small": len(right) < SMALL_SLICE}
