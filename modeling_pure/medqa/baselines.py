"""What needs no model: a constant answer, the longest option, and looking the question up with BM25.

Their accuracies stand in the table beside the model's. A model that does not beat them has shown nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import bm25s
import numpy as np
from tqdm import tqdm

from ..errors import InputError, first_line
from ..rows import LOCAL_BUILDERS, local_files, open_rows
from .questions import Question
from .tasks import Task

PASSAGE_WORDS = 150
TOP_DOCUMENTS = 10
BOOK_SUFFIXES = (".txt", ".md")


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
    computed once. English stop words are left out, nothing is stemmed.

    Raises:
        InputError: the documents hold no word that is looked for; `key` is what they came from.
    """
    words = bm25s.tokenize(documents, stopwords="en", show_progress=False)
    if not any(map(len, words.ids)):
        raise InputError(f"{key}: no words to look for, but for stop words")
    index = bm25s.BM25(method="lucene")
    index.index(words, show_progress=False)
    predictions = []
    for question in tqdm(questions, desc=f"BM25, {key}", unit="question", disable=None):
        stem, *options = bm25s.tokenize(
            [f"{question.context} {question.question}", *question.options],
            stopwords="en",
            return_ids=False,
            show_progress=False,
        )
        of_stem = scores_of(index, stem, len(documents))
        predictions.append(np.argmax([top_sum(of_stem + scores_of(index, o, len(documents))) for o in options]))
    return np.array(predictions)


def scores_of(index: bm25s.BM25, words: list[str], number: int) -> np.ndarray:
    """BM25 of each document for some words; zeros where there is no word."""
    return index.get_scores(words) if words else np.zeros(number, dtype=np.float32)


def top_sum(scores: np.ndarray) -> float:
    """Sum of the ten highest scores."""
    count = min(TOP_DOCUMENTS, len(scores))
    return float(np.partition(scores, -count)[-count:].sum())


def question_documents(questions: list[Question]) -> list[str]:
    """Train questions as documents: each with its right answer."""
    return [f"{question.question} {question.options[question.answer]}" for question in questions]


def textbook_passages(key: str, folder: str) -> list[str]:
    """Passages of about 150 words from the books of a folder: `.txt`, `.md`, and the `text` of jsonl and parquet.

    Raises:
        InputError: no such folder, or nothing to read in it.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{key}: '{folder}' is no folder")
    passages = [passage for text in texts_of(key, folder) for passage in split_passages(text)]
    if not passages:
        raise InputError(f"{key}: '{folder}' holds no text; expected {', '.join((*BOOK_SUFFIXES, *LOCAL_BUILDERS))}")
    return passages


def texts_of(key: str, folder: str) -> Iterator[str]:
    """The texts in a folder's files; `InputError` for one that cannot be read."""
    for file in local_files(folder, BOOK_SUFFIXES):
        yield Path(file).read_text(encoding="utf-8", errors="replace")
    for file in local_files(folder, LOCAL_BUILDERS):
        try:
            for row in open_rows(key, file):
                if not isinstance(row.get("text"), str):
                    raise InputError(f"{key}: '{file}' has no column 'text'")
                yield row["text"]
        except (OSError, ValueError, TypeError) as error:  # pyarrow's errors are ValueErrors
            raise InputError(f"{key}: cannot read '{file}': {first_line(error)}") from error


def split_passages(text: str) -> Iterator[str]:
    """A text in pieces of 150 words; the last is shorter."""
    words = text.split()
    for start in range(0, len(words), PASSAGE_WORDS):
        yield " ".join(words[start : start + PASSAGE_WORDS])
