"""The files of an evaluation: `eval.json`, and `predictions.jsonl` with a line for each question."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..atomic import write_atomically
from ..errors import InputError
from .measure import Scored
from .questions import Question, find_flaws, repeated_rows
from .schema import DataFacts, ModelFacts, Results
from .tasks import Task

SCHEMA_VERSION = 3
RESULTS_FILE, PREDICTIONS_FILE = "eval.json", "predictions.jsonl"
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "evaluate", "numpy", "scipy")


@dataclass(frozen=True)
class Evaluation:
    """What a folder with results says: who answered which questions how.

    Args:
        formulation: name of the one that `predictions` (n,) are of; -1 stands for none.
        beside: predictions of the other formulations, by name.
    """

    name: str
    task: str
    ids: list[str]
    gold: list[int]
    formulation: str
    predictions: list[int]
    beside: dict[str, list[int]]
    results: Results

    def by(self, formulation: str) -> "Evaluation | None":
        """What the same run answered in another formulation, if it asked in that."""
        if formulation == self.formulation:
            return self
        if formulation not in self.beside:
            return None
        return replace(self, formulation=formulation, predictions=self.beside[formulation])


def data_facts(task: Task, path: str, split: str, questions: list[Question]) -> DataFacts:
    """What was evaluated on."""
    return {
        "task": task.name,
        "title": data_title(task, path),
        "path": path,
        "split": split,
        "n": len(questions),
        "sha256": questions_digest(questions),
        "labels": {label: sum(q.answer == i for q in questions) for i, label in enumerate(task.labels)},
        "repeated_rows": [list(rows) for rows in repeated_rows(questions)],
        "flaws": asdict(find_flaws(questions)),
    }


def data_title(task: Task, path: str) -> str:
    """What the questions are called: a file of one's own by its name, for it may be anything in a task's format."""
    names = ", ".join(Path(one).name for one in path.split(", "))
    return task.title if path == task.path else f"{names}, asked as {task.title}"


def questions_digest(questions: list[Question]) -> str:
    """SHA-256 of questions with their options, in order, answers, and passages."""
    parts = [[q.question, q.options, q.answer, q.context, *q.passages] for q in questions]
    content = json.dumps(parts, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def model_facts(name: str, model: torch.nn.Module) -> ModelFacts:
    """Name, size and digest of the weights, so that a score belongs to weights and not to a folder."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"name": name, "parameters": parameters, "sha256": digest.hexdigest()}


def environment(device: torch.device) -> dict[str, str]:
    """What produced a result."""
    return {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        **{package: version(package) for package in PACKAGES},
    }


def count_test_runs(key: str, folder: Path) -> int:
    """How often the test split has been evaluated into this folder so far; `InputError` where that cannot be read."""
    file = folder / RESULTS_FILE
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{key}: '{folder}' is no folder")
    try:
        runs: int = json.loads(file.read_text())["test_runs"] if file.is_file() else 0
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{key}: '{file}' is damaged; it counts the runs of the test split") from error
    return runs


def prediction_lines(
    task: Task,
    questions: list[Question],
    headline: Scored,
    others: list[Scored],
    include_text: bool,
) -> list[dict[str, Any]]:
    """A line for each question: its digest, never its text unless `include_text`.

    What the headline's scorer gives (`log_likelihoods`, `answers`) is in the file's own order of the options; with
    several orders, `orders` holds the log-likelihoods of each, and `averaged_prediction` is that of the probabilities
    averaged over them. `beside` has the predictions of the other formulations.
    """
    lines, num_orders = [], len(headline.orders)
    for number, question in enumerate(questions):
        own, *reordered = headline.records[number * num_orders : (number + 1) * num_orders]
        line: dict[str, Any] = {
            "id": question.digest,
            "gold": task.labels[question.answer],
            "prediction": label_of(task, headline.answers.predictions[number]),
            **{name: value for name, value in own.items() if name != "completions"},
        }
        if reordered and headline.answers.averaged is not None:
            line["averaged_prediction"] = task.labels[headline.answers.averaged[number]]
            line["orders"] = [record["log_likelihoods"] for record in (own, *reordered)]
        line["beside"] = {
            other.formulation.name: label_of(task, other.answers.predictions[number]) for other in others
        }
        if include_text:
            line |= {"question": question.question, "options": list(question.options)}
            line |= {"completions": own["completions"]} if "completions" in own else {}
        lines.append(line)
    return lines


def label_of(task: Task, prediction: int) -> str | None:
    """The label of a prediction; None for -1."""
    return task.labels[prediction] if prediction >= 0 else None


def write_evaluation(folder: Path, results: Results, lines: list[dict[str, Any]]) -> None:
    """`predictions.jsonl`, then `eval.json`: it says that all of an evaluation is there."""
    write_atomically(folder / PREDICTIONS_FILE, "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")


def read_evaluation(key: str, path: str) -> Evaluation:
    """An evaluation from its folder, or from its `eval.json`, beside which `predictions.jsonl` lies.

    Raises:
        InputError: it is not one, or its two files are not of one evaluation.
    """
    file = Path(path) / RESULTS_FILE if Path(path).is_dir() else Path(path)
    try:
        results: Results = json.loads(file.read_text())
        lines = [json.loads(line) for line in file.with_name(PREDICTIONS_FILE).read_text().splitlines()]
        labels, beside = [*results["data"]["labels"]], lines[0].get("beside", {}) if lines else {}
        headline = results["headline"]["name"] if "headline" in results else results["config"]["scorer"]

        def indices(names: list[str | None]) -> list[int]:
            return [labels.index(name) if name else -1 for name in names]

        evaluation = Evaluation(
            results["model"]["name"],
            results["data"]["task"],
            [line["id"] for line in lines],
            indices([line["gold"] for line in lines]),
            headline,
            indices([line["prediction"] for line in lines]),
            {name: indices([line["beside"][name] for line in lines]) for name in beside},
            results,
        )
        correct = sum(map(int.__eq__, evaluation.gold, evaluation.predictions))
        if (len(lines), correct) != (results["metrics"]["n"], results["metrics"]["correct"]):
            raise ValueError("its two files are of different evaluations")
        return evaluation
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: '{path}' is no evaluation ({type(error).__name__}: {error}); "
            f"expected a folder with {RESULTS_FILE} and {PREDICTIONS_FILE} of one"
        ) from error


def read_evaluations(key: str, paths: list[str], taken: tuple[str, ...] = ()) -> list[Evaluation]:
    """Several of them; one whose name is `taken`, or that of another, is called by its path."""
    found = [read_evaluation(key, path) for path in paths]
    names = [*taken, *(evaluation.name for evaluation in found)]
    return [
        replace(evaluation, name=path) if names.count(evaluation.name) > 1 else evaluation
        for evaluation, path in zip(found, paths, strict=True)
    ]


def require_same_questions(key: str, ids: list[str], gold: list[int], task: str, other: Evaluation) -> None:
    """Raise `InputError` unless an evaluation asked these questions of a task, with this key, in this order."""
    if (other.task, other.ids, other.gold) == (task, ids, gold):
        return
    shared = len(set(ids) & set(other.ids))
    raise InputError(
        f"{key}: '{other.name}' answered {len(other.ids)} questions of {other.task}, {shared} of them among these "
        f"{len(ids)} of {task}; only answers to the same questions, with the same key and order, can be compared"
    )
