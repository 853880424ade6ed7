"""From the records of a scorer to metrics: accuracy with its uncertainty, and what has to stand beside it."""

import numpy as np

from .calibration import calibration, label_bias, risk_coverage
from .metrics import load_metric
from .metrics.medqa_accuracy.medqa_accuracy import wilson_interval
from .permutations import permutation_metrics
from .questions import Question
from .tasks import Task

NEAR_TIE = 1e-4  # nats: what rounding in fp32 may do to a log-likelihood, with room
SMALL_SLICE = 100


def measure(
    task: Task, questions: list[Question], scorer: str, records: list[dict], orders: list[tuple[int, ...]]
) -> tuple[dict, np.ndarray]:
    """All metrics of an evaluation, and the predictions that count.

    Args:
        records: of each question in each of `orders`, the file's own order first.

    Returns:
        metrics, as `eval.json` holds them, and the indices of the options predicted in the file's own order, (n,);
        -1 where there is none.
    """
    gold = np.array([question.answer for question in questions])
    extra, predictions, log_likelihoods = MEASURES[scorer](records, gold, orders)
    metrics = accuracy_metrics(task, predictions, gold)
    metrics["bias"] = label_bias(predictions, gold, task.labels)
    if log_likelihoods is not None:
        top = np.sort(log_likelihoods, axis=-1)
        metrics["near_ties"] = int((top[:, -1] - top[:, -2] < NEAR_TIE).sum())
        metrics["calibration"] = calibration(log_likelihoods, gold)
        metrics["risk_coverage"] = risk_coverage(log_likelihoods, gold)
    return {**metrics, **extra}, predictions


def accuracy_metrics(task: Task, predictions: np.ndarray, gold: np.ndarray) -> dict:
    """Accuracy with its intervals, beside chance and each constant answer."""
    measured = load_metric("medqa_accuracy").compute(predictions=predictions, references=gold)
    del measured["recall"]
    return {
        **measured,
        "chance": task.chance,
        "always": {label: float((gold == i).mean()) for i, label in enumerate(task.labels)},
    }


def measure_letters(
    records: list[dict], gold: np.ndarray, orders: list[tuple[int, ...]]
) -> tuple[dict, np.ndarray, np.ndarray]:
    """`label_mass` (probability of all labels together, the mean) and, of several orders, `permutations`."""
    scores = np.array([record["log_likelihoods"] for record in records]).reshape(len(gold), len(orders), -1)
    own = scores[:, 0]
    extra: dict = {"label_mass": float(np.exp(own).sum(-1).mean())}
    if len(orders) > 1:
        extra["permutations"], _ = permutation_metrics(scores, gold, orders)
    return extra, own.argmax(-1), own


def measure_cloze(
    records: list[dict], gold: np.ndarray, orders: list[tuple[int, ...]]
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Accuracy by sum, by mean over characters (lm-evaluation-harness's acc_norm: this one counts), and by PMI."""
    total, alone, characters = (
        np.array([record[name] for record in records]) for name in ("log_likelihoods", "unconditional", "characters")
    )
    per_character = total / np.maximum(characters, 1)
    ways = {"sum": total, "per_character": per_character, "pmi": total - alone}
    accuracies = {name: float((scores.argmax(-1) == gold).mean()) for name, scores in ways.items()}
    return {"cloze": accuracies}, per_character.argmax(-1), per_character


def measure_generations(
    records: list[dict], gold: np.ndarray, orders: list[tuple[int, ...]]
) -> tuple[dict, np.ndarray, None]:
    """What was written: the majority of a question's samples is what counts, the earlier option among equals."""
    answers = [record["answers"] for record in records]
    samples = np.array([[-1 if answer is None else answer for answer in row] for row in answers])
    of_question = (samples == gold[:, None]).mean(1)
    generation = {
        "samples": samples.shape[1],
        "sample_accuracy": float(of_question.mean()),
        "parse_rate": float((samples >= 0).mean()),
        "mean_length": float(np.mean([record["lengths"] for record in records])),
        "reward": float(np.mean([record["rewards"] for record in records])),
    }
    return {"generation": generation}, np.array([majority(row) for row in answers]), None


def majority(answers: list[int | None]) -> int:
    """The commonest answer, the earlier option among equals; -1 where no completion could be read."""
    read = [answer for answer in answers if answer is not None]
    return min(set(read), key=lambda answer: (-read.count(answer), answer), default=-1)


MEASURES = {"letter": measure_letters, "cloze": measure_cloze, "generate": measure_generations}


def slices(questions: list[Question], predictions: np.ndarray) -> dict[str, dict]:
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
        parts[f"stem of {words[of_quarter].min()} to {words[of_quarter].max()} words"] = of_quarter
    return {name: slice_metrics(right[part]) for name, part in parts.items()}


def slice_metrics(right: np.ndarray) -> dict:
    """Accuracy of some questions."""
    correct, n = int(right.sum()), len(right)
    return {
        "n": n,
        "accuracy": correct / n,
        "wilson_interval": list(wilson_interval(correct, n)),
        "small": n < SMALL_SLICE,
    }
