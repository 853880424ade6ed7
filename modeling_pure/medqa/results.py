"""The results of an evaluation, and its files: `eval.json`, and `predictions.jsonl` with a line for each question."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..atomic import write_atomically
from ..console import DISCLAIMER
from ..errors import InputError
from .accuracy import Metrics, Scored
from .comparisons import Comparison, Contamination, Memorisation
from .passages import RetrievalMetrics
from .questions import Flaws, Question, find_flaws, repeated_rows
from .statistics import Share
from .tasks import Task

SCHEMA_VERSION = 4
RESULTS_FILE, PREDICTIONS_FILE = "eval.json", "predictions.jsonl"
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "evaluate", "numpy", "scipy")


@dataclass(frozen=True)
class ModelFacts:
    """Name, size, and a digest of the weights, because a score belongs to weights and not to a folder."""

    name: str
    parameters: int
    sha256: str


@dataclass(frozen=True)
class DataFacts:
    """The questions: origin, counts by right label, flaws, and pairs (row, earlier row) of repeated questions."""

    task: str
    title: str
    path: str
    split: str
    n: int
    sha256: str
    labels: dict[str, int]
    repeated_rows: list[tuple[int, int]]
    flaws: Flaws


@dataclass(frozen=True)
class Headline:
    """The formulation of `Results.metrics`, why it is the headline, and the formats that the model was taught."""

    name: str
    reason: str
    taught: tuple[str, ...]
    warning: str | None


@dataclass(frozen=True)
class Retrieval:
    """An open book: numbers of passages kept and left out, and metrics of those that fit before the questions."""

    path: str
    passages: int
    left_out: int
    metrics: RetrievalMetrics


@dataclass(frozen=True, kw_only=True)
class Results:
    """The contents of `eval.json`.

    Attributes:
        metrics: of the headline; `formulations` has those of all formulations by name.
        slices: accuracy on parts of the questions.
        comparisons: with chance, baselines, other evaluations and the other formulations.
        test_runs: number of evaluations of the test split in the folder, including this one.
        seconds: wall time.
    """

    schema_version: int = SCHEMA_VERSION
    note: str = DISCLAIMER
    model: ModelFacts
    config: dict[str, Any]
    data: DataFacts
    headline: Headline
    metrics: Metrics
    formulations: dict[str, Metrics]
    retrieval: Retrieval | None
    slices: dict[str, Share]
    comparisons: list[Comparison]
    contamination: Contamination | None
    memorisation: Memorisation | None
    test_runs: int
    seconds: float
    environment: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a finished evaluation, as read from its files.

    Attributes:
        name: of the model.
        ids: digests of the questions.
        formulation: name of the formulation of `predictions`, which are indices of options, -1 for no answer.
        beside: predictions of the other formulations, by name.
    """

    name: str
    task: str
    ids: list[str]
    gold: list[int]
    formulation: str
    predictions: list[int]
    beside: dict[str, list[int]]

    def by(self, formulation: str) -> "Evaluation | None":
        """The evaluation in another of its formulations; None if it lacks that."""
        if formulation == self.formulation:
            return self
        if formulation not in self.beside:
            return None
        return replace(self, formulation=formulation, predictions=self.beside[formulation])

    def require_same_questions(self, key: str, ids: list[str], gold: list[int], task: str) -> None:
        """Raise `InputError` unless questions, their order and their right answers are these."""
        if (self.task, self.ids, self.gold) != (task, ids, gold):
            shared = len(set(ids) & set(self.ids))
            raise InputError(
                f"{key}: '{self.name}' has {len(self.ids)} questions of {self.task}, {shared} of them among these "
                f"{len(ids)} of {task}; a comparison needs the same questions and answers in the same order"
            )


def data_facts(task: Task, path: str, split: str, questions: list[Question]) -> DataFacts:
    """Describe the questions."""
    return DataFacts(
        task=task.name,
        title=data_title(task, path),
        path=path,
        split=split,
        n=len(questions),
        sha256=questions_digest(questions),
        labels={label: sum(q.answer == i for q in questions) for i, label in enumerate(task.labels)},
        repeated_rows=repeated_rows(questions),
        flaws=find_flaws(questions),
    )


def data_title(task: Task, path: str) -> str:
    """The title of a task; for local files with their names, since they may hold other questions."""
    names = ", ".join(Path(one).name for one in path.split(", "))
    return task.title if path == task.path else f"{names}, as {task.title}"


def questions_digest(questions: list[Question]) -> str:
    """SHA-256 of questions with their options in order, answers, and passages."""
    parts = [[q.question, q.options, q.answer, q.context, *q.passages] for q in questions]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def model_facts(name: str, model: torch.nn.Module) -> ModelFacts:
    """Describe a model."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return ModelFacts(name, sum(parameter.numel() for parameter in model.parameters()), digest.hexdigest())


def environment(device: torch.device) -> dict[str, str]:
    """Versions and device."""
    return {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        **{package: version(package) for package in PACKAGES},
    }


def count_test_runs(key: str, folder: Path) -> int:
    """Number of earlier evaluations of the test split in a folder; `InputError` if it cannot be read."""
    file = folder / RESULTS_FILE
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{key}: '{folder}' is not a folder")
    try:
        runs: int = json.loads(file.read_text())["test_runs"] if file.is_file() else 0
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{key}: '{file}' is damaged; it counts the evaluations of the test split") from error
    return runs


def prediction_lines(
    task: Task, questions: list[Question], headline: Scored, others: list[Scored], include_text: bool
) -> list[dict[str, Any]]:
    """A line for each question, with its digest; its text only with `include_text`.

    The line holds the headline's record in the file's own order of the options. With several orders, `orders` holds
    the log-likelihoods of each, and `averaged_prediction` follows from the probabilities averaged over them. `beside`
    holds the predictions of the other formulations.
    """
    lines, num_orders = [], len(headline.orders)
    labels = (*task.labels, None)  # a prediction of -1 selects the last
    for number, question in enumerate(questions):
        records = headline.records[number * num_orders : (number + 1) * num_orders]
        own = {name: value for name, value in records[0].items() if include_text or name != "completions"}
        gold, prediction = labels[question.answer], labels[headline.predictions[number]]
        line: dict[str, Any] = {"id": question.digest, "gold": gold, "prediction": prediction, **own}
        if headline.averaged is not None:
            line["averaged_prediction"] = labels[headline.averaged[number]]
            line["orders"] = [record["log_likelihoods"] for record in records]
        line["beside"] = {other.formulation.name: labels[other.predictions[number]] for other in others}
        if include_text:
            line |= {"question": question.question, "options": list(question.options)}
        lines.append(line)
    return lines


def write_evaluation(folder: Path, results: Results, lines: list[dict[str, Any]]) -> None:
    """Write `predictions.jsonl`, then `eval.json`, which marks the evaluation as complete."""
    write_atomically(folder / PREDICTIONS_FILE, "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(folder / RESULTS_FILE, json.dumps(asdict(results), indent=2) + "\n")


def read_evaluation(key: str, path: str) -> Evaluation:
    """Read an evaluation from its folder or `eval.json`; `InputError` unless its two files belong together."""
    file = Path(path) / RESULTS_FILE if Path(path).is_dir() else Path(path)
    try:
        results = json.loads(file.read_text())
        lines = [json.loads(line) for line in file.with_name(PREDICTIONS_FILE).read_text().splitlines()]
        labels = [*results["data"]["labels"]]

        def indices(names: list[str | None]) -> list[int]:
            return [labels.index(name) if name else -1 for name in names]

        gold, predictions = (indices([line[name] for line in lines]) for name in ("gold", "prediction"))
        counts = {name: results["metrics"][name] for name in ("n", "correct")}
        if counts != {"n": len(lines), "correct": sum(map(int.__eq__, gold, predictions))}:
            raise ValueError("its two files belong to different evaluations")
        return Evaluation(
            name=results["model"]["name"],
            task=results["data"]["task"],
            ids=[line["id"] for line in lines],
            gold=gold,
            formulation=results["headline"]["name"],
            predictions=predictions,
            beside={name: indices([line["beside"][name] for line in lines]) for name in lines[0]["beside"]},
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{key}: '{path}' is not an evaluation ({type(error).__name__}: {error}); "
            f"expected a folder with {RESULTS_FILE} and {PREDICTIONS_FILE}"
        ) from error


def read_evaluations(key: str, paths: list[str], taken: tuple[str, ...] = ()) -> list[Evaluation]:
    """Read several evaluations; if names repeat each other or those in `taken`, paths replace them."""
    found = [read_evaluation(key, path) for path in paths]
    names = [*taken, *(evaluation.name for evaluation in found)]
    return [
        replace(evaluation, name=path) if names.count(evaluation.name) > 1 else evaluation
        for evaluation, path in zip(found, paths, strict=True)
    ]
