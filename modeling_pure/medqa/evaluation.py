"""One evaluation: read what it needs, ask the model, measure, and put the results together."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..console import DISCLAIMER
from ..data.guard import Coverage
from ..errors import InputError
from ..rows import LOCAL_BUILDERS, looks_local
from .arguments import EvalArguments
from .baselines import bm25_baseline, question_documents, simple_baselines
from .compare import compare_predictions
from .contamination import contamination_metrics, memorisation_metrics, probe_questions, read_coverage
from .journal import Journal, Progress
from .measure import measure, slices
from .passages import textbook_passages
from .permutations import ORDERS, permuted
from .questions import Question
from .results import (
    SCHEMA_VERSION,
    count_test_runs,
    data_facts,
    environment,
    model_facts,
    prediction_lines,
    questions_digest,
    read_evaluations,
    require_same_questions,
)
from .schema import DataFacts, Memorisation, Results
from .scorers import SCORERS, Asked, score_letters
from .splits import select_split

# What records depend on, beside model and questions; the number of questions in a batch is not among it.
SCORING_OPTIONS = (
    *("task", "scorer", "permutations", "num_samples", "temperature", "top_p", "max_new_tokens"),
    *("length_penalty_min_tokens", "seed"),
)


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads before any model is loaded.

    Args:
        data: what the questions are.
        train: questions for the probe of memory.
        others: predictions (n,) that stand beside the model's, by name.
        coverage: what a text holds of the questions.
        test_runs: how often the folder has seen the test split, this time included.
    """

    questions: list[Question]
    data: DataFacts
    train: list[Question]
    others: dict[str, np.ndarray]
    coverage: Coverage | None
    test_runs: int


def read_inputs(args: EvalArguments) -> Inputs:
    """Read everything, and let the baselines answer; `InputError` for whatever cannot be used."""
    test_runs = count_test_runs("output_dir", Path(args.output_dir)) + (args.split == "test")
    task, questions = args.data_set, read_split(args)
    coverage = read_coverage("contamination", args.contamination, questions) if args.contamination else None
    evaluations = read_others(args, questions)
    train = read_train(args) if args.train_questions else []
    others = {**simple_baselines(task, questions), **searches(args, questions, train), **evaluations}
    data = data_facts(task, args.questions or task.path, args.split, questions)
    return Inputs(questions, data, train, others, coverage, test_runs)


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


def read_train(args: EvalArguments) -> list[Question]:
    """Train questions without those of the dev split."""
    train = args.data_set.read("train_questions", args.train_questions, args.questions_config, "train")
    return select_split(train, "train", "holdout")


def read_others(args: EvalArguments, questions: list[Question]) -> dict[str, np.ndarray]:
    """Predictions of other evaluations by name; `InputError` where they answered other questions."""
    asked = [question.digest for question in questions], [question.answer for question in questions]
    others = read_evaluations("compare_with", args.compare_with, (args.model_name_or_path,))
    for other in others:
        require_same_questions("compare_with", *asked, args.task, other)
    return {other.name: np.array(other.predictions) for other in others}


def searches(args: EvalArguments, questions: list[Question], train: list[Question]) -> dict[str, np.ndarray]:
    """Predictions of BM25 over train questions and textbooks, where these are given and options have texts."""
    documents = {}
    if train and args.data_set.has_letters:
        documents["train questions"] = "train_questions", question_documents(train)
    if args.textbooks and args.data_set.has_letters:
        documents["textbooks"] = "textbooks", textbook_passages("textbooks", args.textbooks)
    return {f"BM25 over {name}": bm25_baseline(key, questions, texts) for name, (key, texts) in documents.items()}


def evaluate(
    args: EvalArguments, inputs: Inputs, asked: Asked, progress: Progress
) -> tuple[Results, list[dict[str, Any]], Journal]:
    """Ask and measure.

    Returns:
        what `eval.json` and `predictions.jsonl` are to hold, and the journal, which they replace.
    """
    start, task, questions = time.perf_counter(), args.data_set, inputs.questions
    model, orders = model_facts(args.model_name_or_path, asked.model), ORDERS[args.permutations]
    probe = probe_questions(inputs.train, questions) if args.scorer == "letter" else []
    options = {name: value for name, value in asdict(args).items() if name in SCORING_OPTIONS}
    about = {"model": model["sha256"], "data": inputs.data["sha256"], "probe": questions_digest(probe), **options}
    journal = Journal(Path(args.output_dir), about)
    items = permuted(questions, orders) if args.permutations > 1 else questions
    records = journal.collect(
        SCORERS[args.scorer], asked, items, progress, name=lambda item: f"row {item // len(orders)}"
    )
    metrics, answers = measure(task, questions, args.scorer, records, orders)
    memory: Memorisation | None = None
    if probe and answers.scores is not None:
        name = "train question {}".format
        of_probe = journal.collect(score_letters, asked, probe, progress, first=len(items), name=name)
        scores = np.array([record["log_likelihoods"] for record in of_probe])
        memory = memorisation_metrics(probe, scores, questions, answers.scores)
    results: Results = {
        "schema_version": SCHEMA_VERSION,
        "note": DISCLAIMER,
        "model": model,
        "config": asdict(args),
        "data": {**inputs.data, "cut_prompts": sum(record["cut"] for record in records[:: len(orders)])},
        "metrics": metrics,
        "slices": slices(questions, answers.predictions),
        "comparisons": compare_predictions(questions, answers.predictions, task.chance, inputs.others),
        "contamination": contamination_metrics(inputs.coverage, questions, answers.predictions)
        if inputs.coverage
        else None,
        "memorisation": memory,
        "test_runs": inputs.test_runs,
        "seconds": round(time.perf_counter() - start, 2),
        "environment": environment(asked.model.device),
    }
    lines = prediction_lines(task, questions, answers, records, len(orders), args.include_text)
    return results, lines, journal
