"""One evaluation: read what it needs, ask the model, measure, and put the results together."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from ..console import DISCLAIMER
from ..data.decontamination import Coverage
from ..errors import InputError
from ..records import looks_local
from .arguments import EvalArguments
from .asked import Asked
from .baselines import bm25_baseline, question_documents, simple_baselines
from .compare import compare_predictions
from .contamination import contamination_metrics, memorisation_metrics, probe_questions, read_coverage
from .formulations import Plan
from .journal import Journal, Progress
from .measure import Scored, measure, slices
from .passages import Library, fit_passages, retrieval_metrics, textbook_passages
from .permutations import ORDERS, permuted
from .question_files import ENDINGS
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
from .schema import DataFacts, Memorisation, Results, Retrieval
from .scorers import SCORERS
from .sections import by
from .splits import select_split


@dataclass(frozen=True)
class OpenBook:
    """The questions with the passages retrieved for them, and what the passages are of."""

    questions: list[Question]
    path: str
    passages: int
    left_out: int
    description: str


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads before any model is loaded.

    Args:
        data: what the questions are.
        train: questions for the probe of memory.
        others: predictions (n,) that stand beside the model's, by name.
        coverage: what a text holds of the questions.
        open_book: None if there are no passages.
        test_runs: how often the folder has seen the test split, this time included.
    """

    questions: list[Question]
    data: DataFacts
    train: list[Question]
    others: dict[str, np.ndarray]
    coverage: Coverage | None
    open_book: OpenBook | None
    test_runs: int


def read_inputs(args: EvalArguments, headline: str) -> Inputs:
    """Read everything, and let the baselines answer; `InputError` for whatever cannot be used.

    Args:
        headline: name of the formulation that other evaluations are compared in, if they have it.
    """
    test_runs = count_test_runs("output_dir", Path(args.output_dir)) + (args.split == "test")
    task, questions = args.data_set, read_split(args)
    coverage = read_coverage("contamination", args.contamination, questions) if args.contamination else None
    evaluations = read_others(args, questions, headline)
    train = read_train(args) if args.train_questions else []
    open_book = retrieve(args.passages, args.num_passages, questions) if args.passages else None
    others = {**simple_baselines(task, questions), **searches(args, questions, train), **evaluations}
    data = data_facts(task, args.questions or task.path, args.split, questions)
    return Inputs(questions, data, train, others, coverage, open_book, test_runs)


def retrieve(folder: str, number: int, questions: list[Question]) -> OpenBook:
    """The passages of a folder that fit the questions best, without those that cover one of them."""
    library = Library.read("passages", folder, guarded=questions)
    return OpenBook(library.retrieve(questions, number), folder, len(library), library.left_out, library.describe())


def read_split(args: EvalArguments) -> list[Question]:
    """The questions of the split that is asked for."""
    task = args.data_set
    if args.split == "all" and not (args.questions and looks_local(args.questions, ENDINGS)):
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


def read_others(args: EvalArguments, questions: list[Question], headline: str) -> dict[str, np.ndarray]:
    """Predictions of other evaluations by name, in the same formulation, or else in their own, which is then named.

    Raises:
        InputError: one of them answered other questions.
    """
    asked = [question.digest for question in questions], [question.answer for question in questions]
    found = {}
    for other in read_evaluations("compare_with", args.compare_with, (args.model_name_or_path,)):
        require_same_questions("compare_with", *asked, args.task, other)
        same = other.by(headline)
        name = other.name if same else f"{other.name} ({other.formulation})"
        found[name] = np.array((same or other).predictions)
    return found


def searches(args: EvalArguments, questions: list[Question], train: list[Question]) -> dict[str, np.ndarray]:
    """Predictions of BM25 over train questions and textbooks, where these are given and options have texts."""
    documents = {}
    if train and args.data_set.has_letters:
        documents["train questions"] = "train_questions", question_documents(train)
    if args.textbooks and args.data_set.has_letters:
        documents["textbooks"] = "textbooks", textbook_passages("textbooks", args.textbooks)
    return {f"BM25 over {name}": bm25_baseline(key, questions, texts) for name, (key, texts) in documents.items()}


def evaluate(
    args: EvalArguments, inputs: Inputs, asked: Asked, plan: Plan, progress: Progress
) -> tuple[Results, list[dict[str, Any]], list[Journal]]:
    """Ask in every formulation, and measure.

    Returns:
        what `eval.json` and `predictions.jsonl` are to hold, and the journals, which they replace.
    """
    start, questions = time.perf_counter(), inputs.questions
    model = model_facts(args.model_name_or_path, asked.model)
    run = Run(args, inputs, plan, model["sha256"], progress)
    headline, *others = [run.score(replace(asked, formulation=formulation)) for formulation in plan.formulations]
    predictions = headline.answers.predictions
    beside = {by(other.formulation.name): other.answers.predictions for other in others}
    covered = inputs.coverage and contamination_metrics(inputs.coverage, questions, predictions)
    results: Results = {
        "schema_version": SCHEMA_VERSION,
        "note": DISCLAIMER,
        "model": model,
        "config": asdict(args) | {"max_new_tokens": asked.sampling.max_new_tokens},
        "data": {**inputs.data, "cut_prompts": headline.cut_prompts},
        "headline": {
            "name": plan.headline.name,
            "reason": plan.reason,
            "taught": [*plan.taught],
            "warning": plan.warning,
        },
        "metrics": headline.metrics,
        "formulations": {
            each.formulation.name: {**each.metrics, "cut_prompts": each.cut_prompts} for each in (headline, *others)
        },
        "retrieval": run.retrieval,
        "slices": slices(questions, predictions),
        "comparisons": compare_predictions(questions, predictions, args.data_set.chance, {**inputs.others, **beside}),
        "contamination": covered,
        "memorisation": run.memory,
        "test_runs": inputs.test_runs,
        "seconds": round(time.perf_counter() - start, 2),
        "environment": environment(asked.model.device),
    }
    return results, prediction_lines(args.data_set, questions, headline, others, args.include_text), run.journals


class Run:
    """Asks formulation by formulation; gathers their journals and what only one of them tells.

    Attributes:
        memory: of the headline, without passages.
        retrieval: of the headline, with them.
    """

    def __init__(self, args: EvalArguments, inputs: Inputs, plan: Plan, weights: str, progress: Progress) -> None:
        self.args, self.inputs, self.plan, self.weights, self.progress = args, inputs, plan, weights, progress
        self.journals: list[Journal] = []
        self.memory: Memorisation | None = None
        self.retrieval: Retrieval | None = None

    def score(self, asked: Asked) -> Scored:
        """Ask all questions in a formulation, in each order of their options if it sees it."""
        formulation, gold = asked.formulation, self.inputs.questions
        questions = self.with_passages(asked) if formulation.open_book else gold
        orders = ORDERS[self.args.permutations if formulation.sees_order else 1]
        probed = formulation == self.plan.headline.closed and formulation.sees_order
        probe = probe_questions(self.inputs.train, gold) if probed else []
        journal = Journal(Path(self.args.output_dir), self.identity(asked, questions, orders, probe))
        self.journals.append(journal)
        items, scorer = permuted(questions, orders) if len(orders) > 1 else questions, SCORERS[formulation.scorer]

        def row(item: int) -> str:
            return f"row {item // len(orders)}"

        records = journal.collect(scorer, asked, items, self.progress, name=row)
        metrics, answers = measure(asked.task, questions, formulation.scorer, records, orders)
        if probe and answers.scores is not None:
            name = "train question {}".format
            of_probe = journal.collect(scorer, asked, probe, self.progress, first=len(items), name=name)
            scores = np.array([record["log_likelihoods"] for record in of_probe])
            self.memory = memorisation_metrics(probe, scores, gold, answers.scores)
        return Scored(formulation, orders, records, metrics, answers)

    def identity(
        self, asked: Asked, questions: list[Question], orders: list[tuple[int, ...]], probe: list[Question]
    ) -> dict[str, Any]:
        """What records depend on; the number of questions in a batch is not among it."""
        return {
            "model": self.weights,
            "task": asked.task.name,
            "questions": questions_digest(questions),
            "probe": questions_digest(probe),
            "orders": len(orders),
            "formulation": asdict(asked.formulation),
            "sampling": asdict(asked.sampling) if asked.formulation.scorer == "generate" else None,
        }

    def with_passages(self, asked: Asked) -> list[Question]:
        """The questions with as much of their passages as fits before them."""
        book = self.inputs.open_book
        assert book is not None
        questions = [
            fit_passages(
                question, asked.tokenizer, asked.longest_prompt(question), asked.prompt, asked.formulation.chat
            )
            for question in tqdm(
                book.questions, desc="passages", unit="question", disable=PartialState().process_index > 0 or None
            )
        ]
        self.retrieval = {
            "path": book.path,
            "passages": book.passages,
            "left_out": book.left_out,
            "metrics": {**retrieval_metrics(questions)},
        }
        return questions
