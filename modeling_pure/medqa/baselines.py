"""What needs no model: a constant answer, the longest option, and looking the question up with BM25.

Their accuracies stand in the table beside the model's. A model that does not beat them has shown nothing.
"""

import numpy as np
from tqdm import tqdm

from .passages import Bm25, content_words
from .questions import Question
from .tasks import Task

TOP_DOCUMENTS = 10


def simple_baselines(task: Task, questions: list[Question]) -> dict[str, np.ndarray]:
    """Predictions (n,) by name: each label always and, where options have texts, the longest (first of equals)."""
    found = {f"always {label}": np.full(len(questions), i) for i, label in enumerate(task.labels)}
    if task.has_letters:
        lengths = [[len(option) for option in question.options] for question in questions]
        found["longest option"] = np.array([row.index(max(row)) for row in lengths])
    return found


def bm25_baseline(key: str, questions: list[Question], documents: list[str]) -> np.ndarray:
    """The option that documents say most about, together with the question: predictions (n,).

    As the IR baseline of the MedQA paper does (Jin et al. 2020): a query is the question and an option, its score the
    sum of the BM25 scores of the ten best documents. BM25 adds up over the words of a query, so the question's part is
    computed once.

    Raises:
        InputError: the documents hold no word that is looked for; `key` is what they came from.
    """
    index = Bm25(key, documents)
    predictions = []
    for question in tqdm(questions, desc=f"BM25, {key}", unit="question", disable=None):
        stem, *options = content_words([f"{question.context} {question.question}", *question.options])
        of_stem = index.scores(stem)
        predictions.append(np.argmax([top_sum(of_stem + index.scores(option)) for option in options]))
    return np.array(predictions)


def top_sum(scores: np.ndarray) -> float:
    """Sum of the ten highest scores."""
    count = min(TOP_DOCUMENTS, len(scores))
    return float(np.partition(scores, -count)[-count:].sum())


def question_documents(questions: list[Question]) -> list[str]:
    """Train questions as documents: each with its right answer."""
    return [f"{question.question} {question.options[question.answer]}" for question in questions]
