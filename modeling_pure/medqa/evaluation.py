"""One evaluation: read its inputs, score the questions in every formulation, and collect the results."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from ..console import DISCLAIMER
from ..errors import InputError
from ..files import looks_local
from ..tokenizer import prompt_ids
from . import comparisons
from .accuracy import Scored, measure, slices
from .arguments import EvalArguments
from .decontamination import Coverage
from .formulations import ORDERS, Plan
from .journal import Journal
from .passages import Bm25, Library, fit_passages, retrieval_metrics
from .question_files import ENDINGS
from .questions import Question, select_split
from .results import (
    DataFacts,
    Headline,
    Results,
    Retrieval,
    count_test_runs,
    data_facts,
    environment,
    model_facts,
    prediction_lines,
    questions_digest,
    read_evaluations,
)
from .scorers import SCORERS, ScorerSettings


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads before any model is loaded.

    Attributes:
        train: train questions, to test for memorisation.
        others: predictions (n,) to compare the model's with, by name.
        coverage: how much of the questions the training text holds.
        library: the open book, or None; `retrieved` are the questions with their best passages.
        test_runs: number of evaluations of the test split in the folder, including this one.
    """

    questions: list[Question]
    data: DataFacts
    train: list[Question]
    others: dict[str, np.ndarray]
    coverage: Coverage | None
    library: Library | None
    retrieved: list[Question]
    test_runs: int


def read_inputs(args: EvalArguments, headline: str) -> Inputs:
    """Read everything and compute the baselines; `InputError` for whatever cannot be used.

    Args:
        headline: name of the formulation in which other evaluations are compared, if they have it.
    """
    test_runs = count_test_runs("output_dir", Path(args.output_dir)) + (args.split == "test")
    task, questions = args.data_set, read_split(args)
    coverage = (
        comparisons.read_coverage("contamination", args.contamination, questions) if args.contamination else None
    )
    evaluations = read_others(args, questions, headline)
    train: list[Question] = []
    if args.train_questions:
        train = task.read("train_questions", args.train_questions, args.questions_config, "train")
        train = select_split(train, "train", "holdout")
    library = Library.read("passages", args.passages, questions) if args.passages else None
    retrieved = library.retrieve(questions, args.num_passages) if library else []
    others = comparisons.simple_baselines(task, questions)
    if train and task.has_letters:
        documents = [f"{one.question} {one.options[one.answer]}" for one in train]
        others["BM25 over train questions"] = comparisons.bm25_baseline(questions, Bm25("train_questions", documents))
    if args.textbooks and task.has_letters:
        textbooks = Library.read("textbooks", args.textbooks)
        others["BM25 over textbooks"] = comparisons.bm25_baseline(questions, textbooks.index)
    data = data_facts(task, args.questions or task.path, args.split, questions)
    return Inputs(questions, data, train, {**others, **evaluations}, coverage, library, retrieved, test_runs)


def read_split(args: EvalArguments) -> list[Question]:
    """The questions of the chosen split."""
    task, path = args.data_set, args.questions or args.data_set.path
    if args.split == "all" and not (args.questions and looks_local(args.questions, ENDINGS)):
        raise InputError("split: all is for local files; for the Hub set test or dev")
    hub_split = "train" if args.split == "dev" else task.split
    questions = task.read("questions", args.questions, args.questions_config, hub_split)
    questions = select_split(questions, "dev") if args.split == "dev" else questions
    if not questions:
        raise InputError(f"split: '{path}' has no dev questions")
    if len(questions) < 2:
        raise InputError(f"questions: '{path}' holds one question; an accuracy needs more")
    return questions


def read_others(args: EvalArguments, questions: list[Question], headline: str) -> dict[str, np.ndarray]:
    """Predictions of other evaluations by name, in this formulation or else in that of their headline."""
    ids, gold = [question.digest for question in questions], [question.answer for question in questions]
    predictions = {}
    for other in read_evaluations("compare_with", args.compare_with, (args.model_name_or_path,)):
        other.require_same_questions("compare_with", ids, gold, args.task)
        same = other.by(headline)
        name = other.name if same else f"{other.name} ({other.formulation})"
        predictions[name] = np.array((same or other).predictions)
    return predictions


def describe_run(args: EvalArguments, inputs: Inputs, settings: ScorerSettings, plan: Plan) -> dict[str, str]:
    """The start-up block: questions, formulations, and cost."""
    parameters = settings.model.num_parameters()
    prompts = [args.data_set.prompt(question) for question in inputs.questions]
    orders = [len(ORDERS[args.permutations]) if each.depends_on_order else 1 for each in plan.formulations]
    tokens = sum(map(len, prompt_ids(settings.tokenizer, prompts))) * sum(orders)
    return {
        "model": f"{args.model_name_or_path}, {parameters:,} parameters",
        "questions": f"{len(inputs.questions):,} ({args.split} of {inputs.data.path})",
        "headline": f"{plan.headline.name}: {plan.reason}",
        "formulations": "; ".join(each.name for each in plan.formulations),
        "orders": f"{args.permutations} of the options, for letter and text",
        **({"passages": f"of {args.passages}: {inputs.library.describe()}"} if inputs.library else {}),
        "tokens": f"{tokens:,} of prompts, about {2 * parameters * tokens / 1e15:.3g} PFLOP for one forward pass",
        "memory": f"{4 * parameters / 1e9:.2f} GB of weights (fp32); a forward pass has {args.batch_size} prompts",
        "device": f"{settings.model.device}, {PartialState().num_processes} process(es)",
        "compared with": ", ".join(inputs.others),
        **({"contamination": args.contamination} if args.contamination else {}),
        "folder": args.output_dir,
        "note": DISCLAIMER,
    }


def evaluate(
    args: EvalArguments, inputs: Inputs, settings: ScorerSettings, plan: Plan
) -> tuple[Results, list[dict[str, Any]], list[Journal]]:
    """Score the questions in every formulation and compute the metrics.

    Returns:
        the contents of `eval.json` and `predictions.jsonl`, and the journals that these files replace.
    """
    start, questions, memorisation, retrieval = time.perf_counter(), inputs.questions, None, None
    model = model_facts(args.model_name_or_path, settings.model)
    all_scored, journals = [], []
    for formulation in plan.formulations:
        settings = replace(settings, formulation=formulation)
        prompted = questions
        if formulation.open_book and (library := inputs.library):
            prompted = with_passages(settings, inputs.retrieved)
            metrics = retrieval_metrics(prompted)
            retrieval = Retrieval(str(args.passages), len(library), library.left_out, metrics)
        tests_memory = formulation == plan.headline.closed and formulation.depends_on_order
        train = comparisons.first_by_digest(inputs.train, questions) if tests_memory else []
        journal, scored = score_formulation(args, settings, prompted, train, model.sha256)
        if train and scored.scores is not None:
            train_scores = score_train_questions(journal, settings, train, len(scored.records))
            memorisation = comparisons.memorisation_metrics(train, train_scores, questions, scored.scores)
        all_scored.append(scored)
        journals.append(journal)
    headline, *others = all_scored
    by_name = {f"by {other.formulation.name}": other.predictions for other in others}
    results = Results(
        model=model,
        config=asdict(args) | {"max_new_tokens": settings.sampling.max_new_tokens},
        data=inputs.data,
        headline=Headline(plan.headline.name, plan.reason, plan.taught, plan.warning),
        metrics=headline.metrics,
        formulations={each.formulation.name: each.metrics for each in all_scored},
        retrieval=retrieval,
        slices=slices(questions, headline.predictions),
        comparisons=comparisons.compare_predictions(
            questions, headline.predictions, args.data_set.chance, {**inputs.others, **by_name}
        ),
        contamination=inputs.coverage
        and comparisons.contamination_metrics(inputs.coverage, questions, headline.predictions),
        memorisation=memorisation,
        test_runs=inputs.test_runs,
        seconds=round(time.perf_counter() - start, 2),
        environment=environment(settings.model.device),
    )
    return results, prediction_lines(args.data_set, questions, headline, others, args.include_text), journals


def score_formulation(
    args: EvalArguments, settings: ScorerSettings, questions: list[Question], train: list[Question], weights: str
) -> tuple[Journal, Scored]:
    """Score all questions in a formulation, in each order of their options if it depends on them."""
    formulation = settings.formulation
    orders = ORDERS[args.permutations if formulation.depends_on_order else 1]
    evaluation = {  # all that the records depend on
        "model": weights,
        "task": settings.task.name,
        "questions": questions_digest(questions),
        "train_questions": questions_digest(train),
        "orders": len(orders),
        "formulation": asdict(formulation),
        "sampling": asdict(settings.sampling) if formulation.scorer == "generate" else None,
    }
    journal = Journal(Path(args.output_dir), evaluation)
    items = [question.reordered(order) for question in questions for order in orders] if len(orders) > 1 else questions
    batches = SCORERS[formulation.scorer](settings, items)
    records = journal.collect(batches, name=lambda item: f"row {item // len(orders)}")
    return journal, measure(settings.task, questions, formulation, records, orders)


def score_train_questions(journal: Journal, settings: ScorerSettings, train: list[Question], first: int) -> np.ndarray:
    """Log-likelihoods (n, options) of train questions; `first` is the index of their first record in the journal."""
    batches = SCORERS[settings.formulation.scorer](settings, train)
    records = journal.collect(batches, first=first, name="train question {}".format)
    return np.array([record["log_likelihoods"] for record in records])


def with_passages(settings: ScorerSettings, retrieved: list[Question]) -> list[Question]:
    """The questions with as much of their passages as fits into the context."""
    is_hidden = PartialState().process_index > 0 or None
    tokenizer, chat = settings.tokenizer, settings.formulation.chat
    return [
        fit_passages(question, tokenizer, settings.longest_prompt(question), settings.prompt, chat)
        for question in tqdm(retrieved, desc="passages", unit="question", disable=is_hidden)
    ]
