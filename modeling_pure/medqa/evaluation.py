"""One evaluation of a model on MedQA questions: scores, accuracy with its uncertainty, and the files it leaves."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from ..errors import InputError
from .questions import LETTERS, Question
from .statistics import exact_mcnemar, standard_error, wilson_interval

SCHEMA_VERSION = 1
RESULTS_FILE, PREDICTIONS_FILE = "results.json", "predictions.jsonl"


def summarise(questions: list[Question], log_likelihoods: torch.Tensor) -> dict:
    """Accuracy and what stands beside it.

    Args:
        log_likelihoods: float32 of shape (len(questions), 4); the first letter wins a tie, as in lm-eval.
    """
    gold = [question.answer for question in questions]
    predictions = log_likelihoods.argmax(-1).tolist()
    correct = [prediction == answer for prediction, answer in zip(predictions, gold, strict=True)]
    n = len(questions)
    low, high = wilson_interval(sum(correct), n)
    return {
        "n": n,
        "accuracy": sum(correct) / n,
        "standard_error": standard_error(correct),
        "wilson_95": [low, high],
        "chance": 0.25,
        "always": {letter: gold.count(i) / n for i, letter in enumerate(LETTERS)},
        "predicted": {letter: predictions.count(i) / n for i, letter in enumerate(LETTERS)},
        "letter_mass": log_likelihoods.exp().sum(-1).mean().item(),
    }


def data_facts(path: str, split: str, questions: list[Question]) -> dict:
    """What was evaluated on; the digest pins the questions with their options and answers."""
    content = json.dumps([[q.question, q.options, q.answer] for q in questions], ensure_ascii=False)
    return {"path": path, "split": split, "n": len(questions), "sha256": hashlib.sha256(content.encode()).hexdigest()}


def environment() -> dict:
    """The versions that produced a result."""
    packages = ("torch", "transformers", "datasets", "tokenizers", "scipy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def count_test_runs(results: Path) -> int:
    """How often the test split has been evaluated into this folder so far."""
    return json.loads(results.read_text()).get("test_runs", 0) if results.is_file() else 0


def write_results(folder: Path, results: dict, questions: list[Question], log_likelihoods: torch.Tensor) -> None:
    """Write `results.json`, and `predictions.jsonl` with a line for each question: its digest, never its text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    with (folder / PREDICTIONS_FILE).open("w") as file:
        for question, scores in zip(questions, log_likelihoods, strict=True):
            line = {
                "digest": question.digest,
                "gold": question.letter,
                "prediction": LETTERS[int(scores.argmax())],
                "log_likelihoods": scores.tolist(),
            }
            file.write(json.dumps(line) + "\n")


def compare_folders(first: Path, second: Path) -> dict[str, float]:
    """Exact McNemar test between two evaluations on the same questions in the same order.

    Raises:
        InputError: they were not made on the same questions.
    """
    runs = [
        [json.loads(line) for line in (folder / PREDICTIONS_FILE).read_text().splitlines()]
        for folder in (first, second)
    ]
    if [line["digest"] for line in runs[0]] != [line["digest"] for line in runs[1]]:
        raise InputError(f"'{first}' and '{second}' hold answers to different questions")
    return exact_mcnemar(*([line["prediction"] == line["gold"] for line in run] for run in runs))
