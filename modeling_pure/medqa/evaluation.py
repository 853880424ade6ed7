"""One evaluation: read what it needs, ask the model, measure, and put the results together."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..console import DISCLAIMER
from ..errors import InputError
from ..rows import LOCAL_BUILDERS, looks_local
from .arguments import EvalArguments
from .baselines import bm25_baseline, question_documents, simple_baselines, textbook_passages
from .compare import compare_predictions
from .contamination import contamination_metrics, memorisation_metrics, probe_questions, read_coverage
from .journal import Journal
from .measure import measure, slices
from .permutations import ORDERS, permuted
from .questions import Question
from .results import (
    SCHEMA_VERSION,
    count_test_runs,
    data_facts,
    environment,
    model_facts,
    questions_digest,
    read_evaluation,
    write_predictions,
)
from .scorers import SCORERS, Asked, score_letters
from .splits import select_split
from .tasks import Task

Progress = Callable[[Iterable, int], Iterable]
# What records depend on, beside model and questions; the number of questions in a batch is not among it.
SCORING_OPTIONS = (
    *("task", "scorer", "permutations", "num_samples", "temperature", "top_p", "max_new_tokens"),
    *("length_penalty_min_tokens", "seed"),
)


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads before any model is loaded; `data` says what the questions are."""

    questions: list[Question]
    data: dict
    train: list[Question]
    passages: list[str]
    others: dict[str, np.ndarray]
    coverage: dict | None


def read_inputs(args: EvalArguments) -> Inputs:
    """Read everything; `InputError` for whatever cannot be used."""
    task = args.data_set
    questions = read_split(args)
    data = data_facts(task, args.questions or task.path, args.split, questions)
    train = task.read("train_questions", args.train_questions, split="train") if args.train_questions else []
    return Inputs(
        questions,
        data,
        select_split(train, "train", "holdout"),
        textbook_passages("textbooks", args.textbooks) if args.textbooks else [],
        read_others(args.compare_with, questions, task.name),
        read_coverage("contamination", args.contamination, questions) if args.contamination else None,
    )


def read_split(args: EvalArguments) -> list[Question]:
    """The questions of the split that is asked for."""
    task = args.data_set
    if args.split == "all" and not (args.questions and looks_local(args.questions, LOCAL_BUILDERS)):
        raise InputError("split: all is for local files; on the Hub say test or dev")
    hub_split = "train" if args.split == "dev" else task.split
    questions = task.read("questions", args.questions, args.questions_config, hub_split)
    questions = select_split(questions, "dev") if args.split == "dev" else questions
    if not questions:
        raise InputError(f"split: '{args.questions or task.path}' has no dev questions")
    if len(questions) < 2:
        raise InputError(f"questions: '{args.questions or task.path}' holds one question, which tells nothing")
    return questions


def read_others(paths: list[str], questions: list[Question], task: str) -> dict[str, np.ndarray]:
    """Predictions of other evaluations by name; `InputError` where they answered other questions."""
    here = [(question.digest, question.answer) for question in questions]
    others: dict[str, np.ndarray] = {}
    for path in paths:
        other = read_evaluation("compare_with", path)
        if other.task != task or list(zip(other.ids, other.gold, strict=True)) != here:
            raise InputError(
                f"compare_with: '{path}' answered other questions ({len(other.ids)} of {other.task}) than the "
                f"{len(here)} of {task} asked here; evaluate that model on the same file and split"
            )
        others[path if other.name in others else other.name] = np.array(other.predictions)
    return others


def evaluate(args: EvalArguments, inputs: Inputs, asked: Asked, progress: Progress) -> dict:
    """Ask, measure and write `predictions.jsonl`; returns what `eval.json` is to hold."""
    start, folder, task, questions = time.perf_counter(), Path(args.output_dir), args.data_set, inputs.questions
    model, orders = model_facts(args.model_name_or_path, asked.model), ORDERS[args.permutations]
    probe = probe_questions(inputs.train, questions) if args.scorer == "letter" else []
    options = {name: value for name, value in asdict(args).items() if name in SCORING_OPTIONS}
    about = {"model": model["sha256"], "data": inputs.data["sha256"], "probe": questions_digest(probe), **options}
    journal = Journal(folder, about)
    items = permuted(questions, orders) if args.permutations > 1 else questions
    records = journal.collect(SCORERS[args.scorer], asked, items, progress)
    probe_records = journal.collect(score_letters, asked, probe, progress, first=len(items)) if probe else []
    require_numbers([*records, *probe_records], len(orders))
    metrics, predictions = measure(task, questions, args.scorer, records, orders)
    write_predictions(folder, task, questions, predictions.tolist(), records, len(orders), args.include_text)
    return {
        "schema_version": SCHEMA_VERSION,
        "note": DISCLAIMER,
        "model": model,
        "config": asdict(args),
        "data": {**inputs.data, "cut_prompts": sum(record["cut"] for record in records[:: len(orders)])},
        "metrics": metrics,
        "slices": slices(questions, predictions),
        "comparisons": compare_predictions(questions, predictions, task.chance, baselines(task, inputs)),
        "contamination": contamination_metrics(inputs.coverage, questions, predictions) if inputs.coverage else None,
        "memorisation": memorisation_metrics(probe, probe_records, metrics) if probe else None,
        "test_runs": count_test_runs(folder) + (args.split == "test"),
        "seconds": round(time.perf_counter() - start, 2),
        "environment": environment(asked.model.device),
    }


def baselines(task: Task, inputs: Inputs) -> dict[str, np.ndarray]:
    """Predictions that stand beside the model's, by name."""
    found = simple_baselines(task, inputs.questions)
    if inputs.train and task.has_letters:
        documents = question_documents(inputs.train)
        found["BM25 over train questions"] = bm25_baseline(inputs.questions, documents, "BM25, train questions")
    if inputs.passages and task.has_letters:
        found["BM25 over textbooks"] = bm25_baseline(inputs.questions, inputs.passages, "BM25, textbooks")
    return {**found, **inputs.others}


def require_numbers(records: list[dict], num_orders: int) -> None:
    """Raise `InputError` where a log-likelihood is not finite: an argmax over such numbers would be an answer."""
    bad = [i for i, record in enumerate(records) if not np.isfinite(record.get("log_likelihoods", [0.0])).all()]
    if bad:
        raise InputError(
            f"model_name_or_path: log-likelihoods of row {bad[0] // num_orders} are not finite (and of "
            f"{len(bad) - 1} other prompts): {records[bad[0]]['log_likelihoods']}; the weights are damaged"
        )
