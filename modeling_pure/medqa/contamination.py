"""Whether a score may be memory: questions found in the training text, and train questions beside the others."""

import json
from pathlib import Path

import numpy as np
from scipy.stats import fisher_exact, ttest_ind

from ..data.decontamination import Coverage
from ..errors import InputError
from .calibration import option_nll
from .measure import slice_metrics
from .questions import Question
from .schema import Contamination, Memorisation


def read_coverage(key: str, path: str, questions: list[Question]) -> Coverage:
    """A file that `python -m modeling_pure.commands.decontaminate --coverage FILE` wrote.

    Raises:
        InputError: it is not one, or it was made for other questions.
    """
    try:
        coverage: Coverage = json.loads(Path(path).read_text())
        found, _ = coverage["questions"], coverage["documents"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: cannot read '{path}' ({type(error).__name__}: {error}); expected what "
            "python -m modeling_pure.commands.decontaminate --coverage FILE writes"
        ) from error
    missing = sum(question.digest not in found for question in questions)
    if missing:
        raise InputError(
            f"{key}: '{path}' says nothing of {missing} of the {len(questions)} questions; "
            "write it anew with --decontaminate on the questions that are evaluated"
        )
    return coverage


def contamination_metrics(coverage: Coverage, questions: list[Question], predictions: np.ndarray) -> Contamination:
    """How much of each question the text holds, and the accuracy without those it covers.

    Returns:
        `documents` read of each source; `checked`, `covered` and `too_short` numbers of questions; `mean_coverage` of
        those checked; `clean` and `covered_accuracy`, accuracies as of a slice, null where there is no such question.
        Questions too short to be checked count as clean.
    """
    right = predictions == np.array([question.answer for question in questions])
    found = [coverage["questions"][question.digest] for question in questions]
    covered = np.array([bool(one["covered"]) for one in found])
    checked = [one["coverage"] for one in found if one["coverage"] is not None]
    return {
        "documents": coverage["documents"],
        "checked": len(checked),
        "too_short": len(found) - len(checked),
        "covered": int(covered.sum()),
        "mean_coverage": float(np.mean(checked)) if checked else None,
        "clean": slice_metrics(right[~covered]) if (~covered).any() else None,
        "covered_accuracy": slice_metrics(right[covered]) if covered.any() else None,
    }


def probe_questions(train: list[Question], questions: list[Question]) -> list[Question]:
    """As many train questions as there are others, the same ones at each evaluation: the first by digest."""
    asked = {question.digest for question in questions}
    others = [question for question in train if question.digest not in asked]
    return sorted(others, key=lambda question: question.digest)[: len(questions)]


def memorisation_metrics(
    train: list[Question], train_scores: np.ndarray, questions: list[Question], scores: np.ndarray
) -> Memorisation:
    """Whether train questions are answered better than those that are evaluated.

    Args:
        train_scores, scores: (n, options), log-likelihoods of the options.

    Returns:
        accuracy on the train questions as of a slice, and their `nll` over the options; `accuracy_gap` (train less the
        others) with the p-value of Fisher's exact test, `nll_gap` (the others less train: above 0 is better on train)
        with that of Welch's t-test, both two-sided.
    """
    gold_train, gold = (np.array([question.answer for question in asked]) for asked in (train, questions))
    right_train, right = train_scores.argmax(-1) == gold_train, scores.argmax(-1) == gold
    nll_train, nll = option_nll(train_scores, gold_train), option_nll(scores, gold)
    counts = [[int(each.sum()), int((~each).sum())] for each in (right_train, right)]
    return {
        **slice_metrics(right_train),
        "nll": float(nll_train.mean()),
        "accuracy_gap": float(right_train.mean() - right.mean()),
        "accuracy_p": float(fisher_exact(counts).pvalue),
        "nll_gap": float(nll.mean() - nll_train.mean()),
        "nll_p": float(ttest_ind(nll, nll_train, equal_var=False).pvalue),
    }
