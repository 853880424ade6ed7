"""The files of an evaluation: `eval.json`, and `predictions.jsonl` with a line for each question."""

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from ..atomic import write_atomically
from ..errors import InputError
from .questions import Question, repeated_rows
from .tasks import Task

SCHEMA_VERSION = 2
RESULTS_FILE, PREDICTIONS_FILE = "eval.json", "predictions.jsonl"
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "evaluate", "numpy", "scipy")


@dataclass(frozen=True)
class Evaluation:
    """What a folder with results says: who answered which questions how."""

    name: str
    task: str
    ids: list[str]
    gold: list[int]
    predictions: list[int]  # -1 where there is none
    results: dict


def data_facts(task: Task, path: str, split: str, questions: list[Question]) -> dict:
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
    }


def data_title(task: Task, path: str) -> str:
    """What the questions are called: a file of one's own by its name, for it may be anything in a task's format."""
    return task.title if path == task.path else f"{Path(path).name}, asked as {task.title}"


def questions_digest(questions: list[Question]) -> str:
    """SHA-256 of questions with their options, in order, and answers."""
    content = json.dumps([[q.question, q.options, q.answer, q.context] for q in questions], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def model_facts(name: str, model: torch.nn.Module) -> dict:
    """Name, size and digest of the weights, so that a score belongs to weights and not to a folder."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"name": name, "parameters": parameters, "sha256": digest.hexdigest()}


def environment(device: torch.device) -> dict:
    """What produced a result."""
    return {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        **{package: version(package) for package in PACKAGES},
    }


def count_test_runs(folder: Path) -> int:
    """How often the test split has been evaluated into this folder so far."""
    file = folder / RESULTS_FILE
    return json.loads(file.read_text()).get("test_runs", 0) if file.is_file() else 0


def write_predictions(
    folder: Path,
    task: Task,
    questions: list[Question],
    predictions: list[int],
    records: list[dict],
    num_orders: int,
    include_text: bool,
) -> None:
    """A line for each question: its digest, never its text unless `include_text`.

    `log_likelihoods` are in the file's own order of the options; with several orders, `orders` holds those of each.
    """
    lines = []
    for number, (question, prediction) in enumerate(zip(questions, predictions, strict=True)):
        own, *others = records[number * num_orders : (number + 1) * num_orders]
        line = {
            "id": question.digest,
            "gold": task.labels[question.answer],
            "prediction": task.labels[prediction] if prediction >= 0 else None,
            **{name: value for name, value in own.items() if name != "completions"},
        }
        if others:
            line["orders"] = [record["log_likelihoods"] for record in (own, *others)]
        if include_text:
            line |= {"question": question.question, "options": list(question.options)}
            line |= {"completions": own["completions"]} if "completions" in own else {}
        lines.append(json.dumps(line, ensure_ascii=False))
    write_atomically(folder / PREDICTIONS_FILE, "".join(line + "\n" for line in lines))


def read_evaluation(key: str, path: str) -> Evaluation:
    """An evaluation from its folder, or from the `eval.json` in it.

    Raises:
        InputError: it is not one, or not a whole one.
    """
    folder = Path(path).parent if Path(path).name == RESULTS_FILE else Path(path)
    try:
        results = json.loads((folder / RESULTS_FILE).read_text())
        lines = [json.loads(line) for line in (folder / PREDICTIONS_FILE).read_text().splitlines()]
        labels = list(results["data"]["labels"])
        return Evaluation(
            results["model"]["name"],
            results["data"]["task"],
            [line["id"] for line in lines],
            [labels.index(line["gold"]) for line in lines],
            [labels.index(line["prediction"]) if line["prediction"] else -1 for line in lines],
            results,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: '{path}' is no evaluation ({type(error).__name__}: {error}); "
            f"expected a folder with {RESULTS_FILE} and {PREDICTIONS_FILE} of one"
        ) from error


def require_same_questions(key: str, first: Evaluation, second: Evaluation) -> None:
    """Raise `InputError` unless two evaluations asked the same questions in the same order."""
    if first.ids == second.ids:
        return
    shared = len(set(first.ids) & set(second.ids))
    raise InputError(
        f"{key}: '{first.name}' answered {len(first.ids)} questions and '{second.name}' {len(second.ids)}, "
        f"{shared} of them the same; only answers to the same questions, in the same order, can be compared"
    )
