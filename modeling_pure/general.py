"""Evaluate a checkpoint and a reference on GPT-2's six usual benchmarks with lm-evaluation-harness. Research use only.

    pure general --config recipes/general.yaml [--limit 100]

Reports raw scores, chance on the same questions, and scores normalised by chance: the mean of six raw scores is mostly
chance, so its ratio to another model's says little. Tasks are lm-evaluation-harness's own, in fp32.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from .atomic import write_atomically
from .console import DISCLAIMER, print_block, print_table
from .errors import InputError, first_line
from .loading import check_model, load_model, load_pretrained
from .medqa.layout import markdown_table
from .options import check_numbers, check_output_folder, check_texts, option
from .recipe import RecipeParser
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

RESULTS_FILE, TABLE_FILE = "general.json", "general.md"
MODEL_KEYS = ("model_name_or_path", "reference_model_name_or_path")


@dataclass(frozen=True)
class Score:
    """A model's score on one task with `n` questions, from 0 to 1; means over tasks lack `n` and `standard_error`.

    `chance` is the score of random answers to the same questions, `normalised` is (score - chance) / (1 - chance).
    """

    n: int | None
    score: float
    standard_error: float | None
    chance: float
    normalised: float


Scores = dict[str, Score]  # of one model, by task


@dataclass
class GeneralArguments:
    """Model, reference model and tasks."""

    model_name_or_path: str = option("runs/pretrain", "causal model: a folder or a Hub id")
    reference_model_name_or_path: str | None = option("openai-community/gpt2", "'' = none")
    tasks: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "by name: {num_fewshot: N, metric: acc or acc_norm}"}
    )
    limit: int | None = option(None, "maximum number of questions per task or subtask, for a quick test")
    batch_size: int = option(16, "requests in a forward pass")
    output_dir: str = option("runs/general", "folder for general.json and general.md")
    trust_remote_code: bool = option(False, "run Python code that comes with a model")

    def __post_init__(self) -> None:
        check_numbers(self, limit=1, batch_size=1)
        check_texts(self, "reference_model_name_or_path")
        check_output_folder("output_dir", self.output_dir)
        if self.reference_model_name_or_path == self.model_name_or_path:
            raise InputError("reference_model_name_or_path: is the model itself; set another one, or '' for none")
        for name, task in self.tasks.items():
            if not isinstance(task, dict) or set(task) != {"metric", "num_fewshot"}:
                raise InputError(f"tasks.{name}: expected a mapping of metric, num_fewshot; found {task!r}")
            if task["metric"] not in ("acc", "acc_norm"):
                raise InputError(f"tasks.{name}.metric: expected acc or acc_norm, found {task['metric']!r}")
            if type(task["num_fewshot"]) is not int or task["num_fewshot"] < 0:
                raise InputError(f"tasks.{name}.num_fewshot: expected 0 or more, found {task['num_fewshot']!r}")


def main() -> None:
    """Parse, load the tasks, evaluate both models, and report."""
    (args,) = RecipeParser((GeneralArguments,), description=__doc__).parse_recipe(sys.argv[1:])
    manager = find_tasks(args.tasks)
    models = {getattr(args, key): key for key in MODEL_KEYS if getattr(args, key)}
    for name, key in models.items():
        check_model(key, name)
        load_pretrained(key, AutoConfig, name, args.trust_remote_code)  # fails before the other model runs for hours
    tasks = {name: load_task(name, manager, **settings) for name, settings in args.tasks.items()}
    facts = {
        "models": " and ".join(models),
        "tasks": ", ".join(f"{name} ({t['num_fewshot']}-shot {t['metric']})" for name, t in args.tasks.items()),
        "questions": f"the first {args.limit} of each (sub)task" if args.limit else "all",
        "folder": args.output_dir,
        "note": DISCLAIMER,
    }
    print_block("General benchmarks", facts)
    write_results(args, {name: evaluate_model(key, name, args, tasks, manager) for name, key in models.items()})


def find_tasks(tasks: dict[str, Any]) -> "TaskManager":
    """lm-evaluation-harness's `TaskManager`; `InputError` if lm_eval is not installed or lacks a task."""
    if not tasks:
        raise InputError("tasks: empty; --config recipes/general.yaml has GPT-2's six")
    if not find_spec("lm_eval"):
        raise InputError("lm_eval is not installed: pip install 'modeling_pure[eval]', or -r requirements-dev.txt")
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in tasks:
        if name not in manager.all_tasks:
            raise InputError(f"tasks.{name}: lm-evaluation-harness has no such task")
    return manager


def load_task(name: str, manager: "TaskManager", num_fewshot: int, metric: str) -> "Task | Group":
    """lm-evaluation-harness's `Task` or `Group` with its questions; `InputError` if the settings do not fit it."""
    try:
        loaded = manager.load([name])
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"tasks.{name}: cannot load its questions: {first_line(error)}") from error
    group, tasks = loaded["groups"].get(name), loaded["tasks"]
    means = [mean.metric for mean in (group and group.aggregate_metric_list) or [] if mean.weight_by_size]
    if name not in tasks and metric not in means:
        raise InputError(f"tasks.{name}.metric: the group or tag has no {metric} over all its questions")
    for config, known in ((task.config, task.aggregation()) for task in tasks.values()):
        if config.output_type != "multiple_choice" or (config.process_results and config.task != "truthfulqa_mc2"):
            raise InputError(f"tasks.{name}: is not plain multiple choice, so chance is unknown")
        if metric not in known:
            raise InputError(f"tasks.{name}.metric: the task has no {metric}")
        if config.num_fewshot == 0 != num_fewshot:  # lm-evaluation-harness would silently keep 0
            raise InputError(f"tasks.{name}.num_fewshot: the task is defined with 0, found {num_fewshot}")
    return group or tasks[name]


def evaluate_model(
    key: str, name: str, args: GeneralArguments, tasks: dict[str, Any], manager: "TaskManager"
) -> Scores:
    """The scores of one model; `key` is the option that names it."""
    from lm_eval.models.huggingface import HFLM

    model = load_model(key, name, args.trust_remote_code)
    tokenizer = load_tokenizer(key, name, model.config.vocab_size)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size, device=str(model.device))
    options = {"limit": args.limit, "task_manager": manager}
    return {task: score_task(lm, task, tasks[task], **args.tasks[task], **options) for task in tasks}


def score_task(lm: "HFLM", name: str, task: "Task | Group", num_fewshot: int, metric: str, **options: Any) -> Score:
    """Evaluate one task or group of tasks with lm-evaluation-harness."""
    from lm_eval import simple_evaluate

    # Standard errors of means need no bootstrap, but bootstrap_iters=0 would omit them.
    result = simple_evaluate(lm, tasks=[task], num_fewshot=num_fewshot, bootstrap_iters=1, **options)
    score, error = (result["results"][name][f"{kind},none"] for kind in (metric, f"{metric}_stderr"))
    if not isfinite(score):
        raise InputError(f"tasks.{name}: the score is {score}; the model gives every answer a probability of 0")
    chances = [chance_of(subtask, sample) for subtask, samples in result["samples"].items() for sample in samples]
    chance = fmean(chances)
    standard_error = None if error == "N/A" else float(error)
    return Score(len(chances), float(score), standard_error, chance, float(score - chance) / (1 - chance))


def chance_of(task: str, sample: dict[str, Any]) -> float:
    """The expected score of a random answer to a question; for TruthfulQA's MC2 the share of true ones."""
    labels = sample["doc"]["mc2_targets"]["labels"] if task == "truthfulqa_mc2" else None
    return sum(labels) / len(labels) if labels else 1 / len(sample["resps"])


def summarise(scores: Scores, reference: Scores | None = None) -> dict[str, float | None]:
    """Means over the tasks and, with a reference, its means and ratios to them; None instead of a division by 0.

    `coin_ratio`, chance over the reference's mean, is the `raw_ratio` of random answers.
    """
    ours = mean_score(scores)
    summary: dict[str, float | None] = {"mean": ours.score, "chance": ours.chance, "normalised": ours.normalised}
    if reference is None:
        return summary
    theirs = mean_score(reference)
    return summary | {
        "reference_mean": theirs.score,
        "reference_normalised": theirs.normalised,
        "raw_ratio": ours.score / theirs.score if theirs.score else None,
        "coin_ratio": ours.chance / theirs.score if theirs.score else None,
        "normalised_ratio": ours.normalised / theirs.normalised if theirs.normalised > 1e-9 else None,  # else rounding
    }


def mean_score(scores: Scores) -> Score:
    """Means over the tasks."""
    score, chance, normalised = (
        fmean(getattr(one, name) for one in scores.values()) for name in ("score", "chance", "normalised")
    )
    return Score(None, score, None, chance, normalised)


def write_results(args: GeneralArguments, models: dict[str, Scores]) -> None:
    """Write `general.json` and `general.md`, and print the table."""
    folder, summary = Path(args.output_dir), summarise(*models.values())
    results = {
        "schema_version": 1,
        "note": DISCLAIMER,
        "config": asdict(args),
        "models": {name: {task: asdict(score) for task, score in scores.items()} for name, scores in models.items()},
        "summary": summary,
        "environment": {name: version(name) for name in ("torch", "transformers", "lm_eval", "datasets")},
    }
    (head, *rows), words = table(models), in_words(summary)
    text = "\n\n".join(["# General benchmarks", f"**{DISCLAIMER}**", markdown_table(head, rows), *words]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TABLE_FILE, text)
    write_atomically(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    print_table("General benchmarks", head, rows)
    print(*words, f"written: {folder}/{RESULTS_FILE}, {TABLE_FILE}", DISCLAIMER, sep="\n")


def table(models: dict[str, Scores]) -> list[list[str]]:
    """Head, and a row for each task and model in percent, the means last."""
    rows = [["task", "model", "questions", "score", "standard error", "chance", "normalised"]]
    for task in (*next(iter(models.values())), "mean"):
        for name, scores in models.items():
            one = scores.get(task) or mean_score(scores)
            values = (one.score, one.standard_error, one.chance, one.normalised)
            shown = ("" if value is None else f"{100 * value:.1f}" for value in values)
            rows.append([task, name, str(one.n or ""), *shown])
    return rows


def in_words(summary: dict[str, float | None]) -> list[str]:
    """The ratios as sentences, the raw ratio together with chance's."""
    raw, coin, gain = (summary.get(name) for name in ("raw_ratio", "coin_ratio", "normalised_ratio"))
    words = [f"Raw mean: {raw:.1%} of the reference's; chance alone reaches {coin:.1%}."] if raw is not None else []
    if gain is not None:
        words.append(f"Gain over chance: {gain:.1%} of the reference's.")
    elif "normalised_ratio" in summary:
        words.append("The reference is not above chance on these questions, so gains cannot be compared.")
    return words
