"""What an accuracy is compared with: baselines, other predictions, contamination, and accuracy on train questions."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import fisher_exact, ttest_ind
from tqdm import tqdm

from ..errors import InputError
from .decontamination import Coverage
from .passages import Bm25, content_words
from .questions import Question
from .statistics import Interval, Share, holm, option_nll, p_against_chance, paired, share_right
from .tasks import Task

TOP_DOCUMENTS = 10


def simple_baselines(task: Task, questions: list[Question]) -> dict[str, np.ndarray]:
    """Predictions (n,) by name: each constant label, and the longest option if they have texts."""
    predictions = {f"always {label}": np.full(len(questions), i) for i, label in enumerate(task.labels)}
    if task.has_letters:
        predictions["longest option"] = np.array([np.argmax([*map(len, one.options)]) for one in questions])
    return predictions


def bm25_baseline(questions: list[Question], index: Bm25) -> np.ndarray:
    """Predictions (n,) of the IR baseline of the MedQA paper (Jin et al. 2020).

    A query is the question and an option; its score is the sum of the BM25 scores of the ten best documents. BM25 is a
    sum over the words of a query, so the question's part is computed once.
    """
    top = min(TOP_DOCUMENTS, index.number)
    predictions = []
    for question in tqdm(questions, desc="BM25", unit="question", disable=None):
        stem, *options = content_words([f"{question.context} {question.question}", *question.options])
        scores = index.scores(stem) + np.array([index.scores(option) for option in options])
        predictions.append(np.partition(scores, -top, axis=-1)[:, -top:].sum(-1).argmax())
    return np.array(predictions)


@dataclass(frozen=True)
class Comparison:
    """Two accuracies compared; chance has no counts and no intervals.

    Attributes:
        accuracy: of the other predictions, with `n` and `wilson_interval`.
        difference: of the two accuracies, with its paired bootstrap interval.
        only_first, only_second: number of questions that only one of them has right.
        p_value: of the exact McNemar test, for chance of the exact binomial test; `p_holm` is adjusted for all rows.
    """

    name: str
    accuracy: float
    difference: float
    p_value: float
    n: int | None = None
    wilson_interval: Interval | None = None
    bootstrap_interval: Interval | None = None
    only_first: int | None = None
    only_second: int | None = None
    p_holm: float = 1.0


def with_holm(rows: list[Comparison]) -> list[Comparison]:
    """The rows with `p_holm`."""
    return [replace(row, p_holm=p) for row, p in zip(rows, holm([row.p_value for row in rows]), strict=True)]


def compare_predictions(
    questions: list[Question], predictions: np.ndarray, chance: float, others: dict[str, np.ndarray]
) -> list[Comparison]:
    """Compare a model with chance and with other predictions (n,); `difference` is its accuracy less theirs."""
    gold = np.array([question.answer for question in questions])
    right = predictions == gold
    p_chance = p_against_chance(int(right.sum()), len(gold), chance)
    rows = [Comparison("chance", chance, float(right.mean()) - chance, p_chance)]
    for name, other in others.items():
        rows.append(Comparison(name, **vars(share_right(other == gold)), **vars(paired(other == gold, right))))
    return with_holm(rows)


def read_coverage(key: str, path: str, questions: list[Question]) -> Coverage:
    """Read a coverage file; `InputError` if it cannot be read or was made for other questions."""
    try:
        coverage: Coverage = json.loads(Path(path).read_text())
        found, _ = coverage["questions"], coverage["documents"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: cannot read '{path}' ({type(error).__name__}: {error}); expected the output of "
            "`pure decontaminate --coverage FILE`"
        ) from error
    missing = sum(question.digest not in found for question in questions)
    if missing:
        raise InputError(
            f"{key}: '{path}' lacks {missing} of the {len(questions)} questions; "
            "write it again with --decontaminate set to the questions to evaluate"
        )
    return coverage


@dataclass(frozen=True)
class Contamination:
    """How much of the questions the training text holds.

    Attributes:
        documents: number of documents read, by source.
        checked, too_short, covered: numbers of questions; those too short to check count as clean.
        mean_coverage: of the checked questions.
        clean, covered_accuracy: accuracy on clean and on covered questions; None without such questions.
    """

    documents: dict[str, int]
    checked: int
    too_short: int
    covered: int
    mean_coverage: float | None
    clean: Share | None
    covered_accuracy: Share | None


def contamination_metrics(coverage: Coverage, questions: list[Question], predictions: np.ndarray) -> Contamination:
    """Count covered questions, and compute the accuracy with and without them."""
    right = predictions == np.array([question.answer for question in questions])
    found = [coverage["questions"][question.digest] for question in questions]
    covered = np.array([bool(one["covered"]) for one in found])
    checked = [one["coverage"] for one in found if one["coverage"] is not None]
    return Contamination(
        documents=coverage["documents"],
        checked=len(checked),
        too_short=len(found) - len(checked),
        covered=int(covered.sum()),
        mean_coverage=float(np.mean(checked)) if checked else None,
        clean=share_right(right[~covered]) if (~covered).any() else None,
        covered_accuracy=share_right(right[covered]) if covered.any() else None,
    )


def first_by_digest(train: list[Question], questions: list[Question]) -> list[Question]:
    """As many train questions as there are `questions`, the same for every model: the first by digest."""
    evaluated = {question.digest for question in questions}
    others = [question for question in train if question.digest not in evaluated]
    return sorted(others, key=lambda question: question.digest)[: len(questions)]


@dataclass(frozen=True)
class Memorisation(Share):
    """The accuracy on train questions, compared with the evaluated ones; p-values are two-sided.

    Attributes:
        nll: mean over the train questions, in nats.
        accuracy_gap, accuracy_p: train less evaluated, with Fisher's exact test.
        nll_gap, nll_p: evaluated less train (positive if train is better), with Welch's t-test.
    """

    nll: float
    accuracy_gap: float
    accuracy_p: float
    nll_gap: float
    nll_p: float


def memorisation_metrics(
    train: list[Question], train_scores: np.ndarray, questions: list[Question], scores: np.ndarray
) -> Memorisation:
    """Test whether train questions are answered better; scores are log-likelihoods (n, options)."""
    gold_train, gold = (np.array([one.answer for one in of_split]) for of_split in (train, questions))
    right_train, right = train_scores.argmax(-1) == gold_train, scores.argmax(-1) == gold
    nll_train, nll = option_nll(train_scores, gold_train), option_nll(scores, gold)
    counts = [[int(each.sum()), int((~each).sum())] for each in (right_train, right)]
    return Memorisation(
        **vars(share_right(right_train)),
        nll=float(nll_train.mean()),
        accuracy_gap=float(right_train.mean() - right.mean()),
        accuracy_p=float(fisher_exact(counts).pvalue),
        nll_gap=float(nll.mean() - nll_train.mean()),
        nll_p=float(ttest_ind(nll, nll_train, equal_var=False).pvalue),
    )
