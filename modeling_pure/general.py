"""GPT-2's usual six benchmarks through lm-evaluation-harness, on a checkpoint and on a reference. Research use only.

    pure general --config recipes/general.yaml [--limit 100]

Reports raw scores beside chance on the same questions, and scores with chance taken off: the mean of six raw scores is
mostly chance, so a raw ratio to another model means little. Tasks are lm-evaluation-harness's own, in fp32.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
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
COLUMNS = ("score", "standard_error", "chance", "normalised")


Scores = dict[str, Any]  # of one task: `n` questions, and `COLUMNS` from 0 to 1, None if a task has no such score


@dataclass
class GeneralArguments:
    """Two models and the tasks."""

    model_name_or_path: str = option("runs/pretrain", "causal model: a folder or a Hub id")
    reference_model_name_or_path: str | None = option("openai-community/gpt2", "'' = none")
    tasks: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "by name: {num_fewshot: N, metric: acc or acc_norm}"}
    )
    limit: int | None = option(None, "questions of each (sub)task, for a quick look")
    batch_size: int = option(16, "requests in a forward pass")
    output_dir: str = option("runs/general", "folder for general.json and general.md")
    trust_remote_code: bool = option(False, "run Python code that comes with a model")

    def __post_init__(self) -> None:
        check_numbers(self, limit=1, batch_size=1)
        check_texts(self, "reference_model_name_or_path")
        check_output_folder("output_dir", self.output_dir)
        if self.reference_model_name_or_path == self.model_name_or_path:
            raise InputError("reference_model_name_or_path: is the model itself; '' = none")
        for name, task in self.tasks.items():
            if not isinstance(task, dict) or set(task) != {"metric", "num_fewshot"}:
                raise InputError(f"tasks.{name}: expected a mapping of metric, num_fewshot; found {task!r}")
            if task["metric"] not in ("acc", "acc_norm"):
                raise InputError(f"tasks.{name}.metric: expected acc or acc_norm, found {task['metric']!r}")
            if type(task["num_fewshot"]) is not int or task["num_fewshot"] < 0:
                raise InputError(f"tasks.{name}.num_fewshot: expected 0 or more, found {task['num_fewshot']!r}")


def main() -> None:
    """Arguments, tasks with their questions, both models on all of them, report."""
    (args,) = RecipeParser((GeneralArguments,), description=__doc__).parse_recipe(sys.argv[1:])
    manager = find_tasks(args.tasks)
    models = {getattr(args, key): key for key in MODEL_KEYS if getattr(args, key)}
    for name, key in models.items():
        check_model(key, name)
        load_pretrained(key, AutoConfig, name, args.trust_remote_code)  # before the other model is measured for hours
    tasks = {name: load_task(name, manager, **settings) for name, settings in args.tasks.items()}
    tasks_in_words = (f"{name} ({task['num_fewshot']}-shot {task['metric']})" for name, task in args.tasks.items())
    questions = f"the first {args.limit} of each (sub)task" if args.limit else "all"
    facts = {"models": " and ".join(models), "tasks": ", ".join(tasks_in_words), "questions": questions}
    print_block("General benchmarks", facts | {"folder": args.output_dir, "note": DISCLAIMER})
    write_results(args, {name: evaluate_model(key, name, args, tasks, manager) for name, key in models.items()})


def find_tasks(tasks: dict[str, Any]) -> "TaskManager":
    """lm-evaluation-harness's `TaskManager`; `InputError` if it is not installed, or lacks a task."""
    if not tasks:
        raise InputError("tasks: empty; --config recipes/general.yaml names GPT-2's six")
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
    ways = [way.metric for way in (group and group.aggregate_metric_list) or [] if way.weight_by_size]
    if name not in tasks and metric not in ways:
        raise InputError(f"tasks.{name}.metric: the group or tag has no {metric} over all its questions")
    for config, known in ((task.config, task.aggregation()) for task in tasks.values()):
        if config.output_type != "multiple_choice" or (config.process_results and config.task != "truthfulqa_mc2"):
            raise InputError(f"tasks.{name}: is no plain multiple choice, so chance is unknown")
        if metric not in known:
            raise InputError(f"tasks.{name}.metric: the task has no {metric}")
        if config.num_fewshot == 0 != num_fewshot:  # lm-evaluation-harness would silently keep 0
            raise InputError(f"tasks.{name}.num_fewshot: the task is defined with 0, found {num_fewshot}")
    return group or tasks[name]


def evaluate_model(
    key: str, name: str, args: GeneralArguments, tasks: dict[str, Any], manager: "TaskManager"
) -> dict[str, Scores]:
    """Scores of one model by task; `key` is the option that named the model."""
    from lm_eval.models.huggingface import HFLM

    model = load_model(key, name, args.trust_remote_code)
    tokenizer = load_tokenizer(key, name, model.config.vocab_size)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size, device=str(model.device))
    options = {"limit": args.limit, "task_manager": manager}
    return {task: score_task(lm, task, tasks[task], **args.tasks[task], **options) for task in tasks}


def score_task(lm: "HFLM", name: str, task: "Task | Group", num_fewshot: int, metric: str, **options: Any) -> Scores:
    """Evaluate one task or group of tasks.

    Returns:
        `n` questions; lm-evaluation-harness's `score` and `standard_error` (None for a single question); `chance` on
        the same questions; `normalised`, (score - chance) / (1 - chance).
    """
    from lm_eval import simple_evaluate

    # Standard errors of means are formulas, but with bootstrap_iters=0 there would be none.
    result = simple_evaluate(lm, tasks=[task], num_fewshot=num_fewshot, bootstrap_iters=1, **options)
    score, error = (result["results"][name][f"{kind},none"] for kind in (metric, f"{metric}_stderr"))
    if not isfinite(score):
        raise InputError(f"tasks.{name}: the score is {score}; the model gives all answers no probability at all")
    chances = [chance_of(subtask, sample) for subtask, samples in result["samples"].items() for sample in samples]
    chance = sum(chances) / len(chances)
    values = (float(score), None if error == "N/A" else float(error), chance, float(score - chance) / (1 - chance))
    return {"n": len(chances), **dict(zip(COLUMNS, values, strict=True))}


def chance_of(task: str, sample: dict[str, Any]) -> float:
    """The score of a question if all its answers are equally likely; in TruthfulQA's MC2 the share of true ones."""
    labels = sample["doc"]["mc2_targets"]["labels"] if task == "truthfulqa_mc2" else None
    return sum(labels) / len(labels) if labels else 1 / len(sample["resps"])


def summarise(ours: dict[str, Scores], reference: dict[str, Scores] | None = None) -> dict[str, float | None]:
    """Means over the tasks and, with a reference, its means and the ratios to them; None instead of a division by 0.

    `coin_ratio`, chance over the reference's mean, is the `raw_ratio` of a model that knows nothing.
    """
    means = averages(ours)
    score, chance, normalised = means["score"], means["chance"], means["normalised"]
    summary: dict[str, float | None] = {"mean": score, "chance": chance, "normalised": normalised}
    if reference is None:
        return summary
    whole, gain = (averages(reference)[name] for name in ("score", "normalised"))
    return summary | {
        "reference_mean": whole,
        "reference_normalised": gain,
        "raw_ratio": score / whole if whole else None,
        "coin_ratio": chance / whole if whole else None,
        "normalised_ratio": normalised / gain if gain > 1e-9 else None,  # below that, rounding
    }


def averages(rows: dict[str, Scores]) -> dict[str, float]:
    """Means over the tasks."""
    return {name: sum(row[name] for row in rows.values()) / len(rows) for name in ("score", "chance", "normalised")}


def write_results(args: GeneralArguments, models: dict[str, dict[str, Scores]]) -> None:
    """Write `general.json` and `general.md`, and print the same table."""
    folder, summary = Path(args.output_dir), summarise(*models.values())
    results = {"schema_version": 1, "note": DISCLAIMER, "config": asdict(args), "models": models, "summary": summary}
    results["environment"] = {name: version(name) for name in ("torch", "transformers", "lm_eval", "datasets")}
    (head, *rows), words = table(models), in_words(summary)
    text = "\n\n".join(["# General benchmarks", f"**{DISCLAIMER}**", markdown_table(head, rows), *words]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TABLE_FILE, text)
    write_atomically(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    print_table("General benchmarks", head, rows)
    print(*words, f"written: {folder}/{RESULTS_FILE}, {TABLE_FILE}", DISCLAIMER, sep="\n")


def table(models: dict[str, dict[str, Scores]]) -> list[list[str]]:
    """Head, and a row for each task and model in percent, the means last."""
    lines = [["task", "model", "questions", "score", "standard error", "chance", "chance taken off"]]
    for task in (*next(iter(models.values())), "mean"):
        for name, rows in models.items():
            row = rows.get(task) or averages(rows)
            values = ("" if row.get(column) is None else f"{100 * row[column]:.1f}" for column in COLUMNS)
            lines.append([task, name, str(row.get("n", "")), *values])
    return lines


def in_words(summary: dict[str, float | None]) -> list[str]:
    """The ratios; the raw one always beside chance."""
    raw, coin, gain = (summary.get(name) for name in ("raw_ratio", "coin_ratio", "normalised_ratio"))
    words = [f"Raw mean: {raw:.1%} of the reference's; chance alone has {coin:.1%} of it."] if raw is not None else []
    if gain is not None:
        words.append(f"Of the reference's gain over chance: {gain:.1%}.")
    elif "normalised_ratio" in summary:
        words.append("The reference is not above chance on these questions, so there is no gain to compare with.")
    return words
