"""GPT-2's usual six benchmarks through lm-evaluation-harness, on a checkpoint and on a reference. Research use only.

    python -m modeling_pure.general --config recipes/general.yaml [--limit 100]

Raw scores beside what a coin scores on the same questions, and scores with chance taken off: the mean of six raw
scores is mostly chance, so a raw ratio to another model says little. Tasks are lm-evaluation-harness's own, in fp32.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from .atomic import write_atomically
from .console import DISCLAIMER, print_block, print_table
from .data.tokenizer import load_tokenizer
from .errors import InputError, first_line, run_script
from .recipe import RecipeParser
from .training.checkpoint import check_model

RESULTS_FILE, TABLE_FILE = "general.json", "general.md"
TASK_FIELDS = {"num_fewshot", "metric"}


@dataclass
class GeneralArguments:
    """Two models and the tasks."""

    model_name_or_path: str = field(
        default="runs/pretrain", metadata={"help": "any causal language model: a folder or a Hub id"}
    )
    reference_model_name_or_path: str | None = field(
        default="openai-community/gpt2", metadata={"help": "the model it is measured against; '' = none"}
    )
    tasks: dict = field(
        default_factory=dict,
        metadata={"help": "lm-evaluation-harness's name of each task: {num_fewshot: N, metric: acc or acc_norm}"},
    )
    limit: int | None = field(default=None, metadata={"help": "questions of each (sub)task, for a quick look"})
    batch_size: int = field(default=16, metadata={"help": "requests in a forward pass"})
    output_dir: str = field(default="runs/general", metadata={"help": "folder for general.json and general.md"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that comes with a model"})

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit: expected 1 or more, found {self.limit}")
        for name, settings in self.tasks.items():
            if not isinstance(settings, dict) or set(settings) != TASK_FIELDS:
                raise InputError(f"tasks.{name}: expected a mapping of {', '.join(sorted(TASK_FIELDS))}")
            if settings["metric"] not in ("acc", "acc_norm"):
                raise InputError(f"tasks.{name}.metric: expected acc or acc_norm, found {settings['metric']!r}")


def main() -> None:
    """Arguments, both models on all tasks, report."""
    (args,) = RecipeParser((GeneralArguments,), description=__doc__).parse_recipe(sys.argv[1:])
    task_manager = find_tasks(args.tasks)
    check_model("model_name_or_path", args.model_name_or_path)
    models = [args.model_name_or_path]
    if args.reference_model_name_or_path:
        check_model("reference_model_name_or_path", args.reference_model_name_or_path)
        models.append(args.reference_model_name_or_path)
    print_block(
        "Six general benchmarks",
        {
            "models": " and ".join(models),
            "tasks": ", ".join(f"{name} ({task['num_fewshot']}-shot)" for name, task in args.tasks.items()),
            "questions": f"the first {args.limit} of each" if args.limit else "all",
            "folder": args.output_dir,
            "note": DISCLAIMER,
        },
    )
    rows = {name: evaluate_model(name, args, task_manager) for name in models}
    results = {
        "schema_version": 1,
        "note": DISCLAIMER,
        "config": asdict(args),
        "models": rows,
        "summary": summarise(*rows.values()),
        "environment": {name: version(name) for name in ("torch", "transformers", "lm_eval", "datasets")},
    }
    write_results(Path(args.output_dir), results)


def find_tasks(tasks: dict):
    """lm-evaluation-harness's `TaskManager`; `InputError`, before any model is loaded, where it has no such task."""
    if not tasks:
        raise InputError("tasks: none; --config recipes/general.yaml names GPT-2's six")
    if not find_spec("lm_eval"):
        raise InputError("lm_eval is not installed: pip install 'lm_eval>=0.4.13'")
    from lm_eval.tasks import TaskManager

    task_manager = TaskManager()
    for name in tasks:
        if name not in task_manager.all_tasks:
            raise InputError(f"tasks.{name}: lm-evaluation-harness has no such task")
    return task_manager


def evaluate_model(name: str, args: GeneralArguments, task_manager) -> dict[str, dict]:
    """Scores of one model by task, as `score_task` gives them."""
    from lm_eval.models.huggingface import HFLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model_name_or_path: cannot load '{name}': {first_line(error)}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer("model_name_or_path", name)
    lm = HFLM(pretrained=model.eval().to(device), tokenizer=tokenizer, batch_size=args.batch_size, device=device)
    return {task: score_task(lm, task, settings, args.limit, task_manager) for task, settings in args.tasks.items()}


def score_task(lm, task: str, settings: dict, limit: int | None, task_manager) -> dict[str, float]:
    """One task, or group of tasks, on one model.

    Returns:
        `score` and its `standard_error` (null for a single question), both lm-evaluation-harness's; `chance`,
        measured on the same questions; `normalised`, (score - chance) / (1 - chance); `n` questions.

    Raises:
        InputError: the task has no such metric, or its score is no number.
    """
    from lm_eval import simple_evaluate

    result = simple_evaluate(
        lm,
        tasks=[task],
        num_fewshot=settings["num_fewshot"],
        limit=limit,
        task_manager=task_manager,
        log_samples=True,
        bootstrap_iters=1,  # standard errors of means are formulas; with 0 there are none
    )
    found = result["results"][task]
    score = found.get(f"{settings['metric']},none")
    if score is None:
        raise InputError(f"tasks.{task}.metric: the task has no {settings['metric']}")
    if not math.isfinite(score):
        raise InputError(f"tasks.{task}: the score is {score}; the model gives all answers no probability at all")
    chances = [chance_of(task, sample) for samples in result["samples"].values() for sample in samples]
    chance = sum(chances) / len(chances)
    return {
        "n": len(chances),
        "score": score,
        "standard_error": error if isinstance(error := found[f"{settings['metric']}_stderr,none"], float) else None,
        "chance": chance,
        "normalised": (score - chance) / (1 - chance),
    }


def chance_of(task: str, sample: dict) -> float:
    """What a question gives to a model that holds all its answers equally likely: one in as many as there are.

    TruthfulQA's MC2 counts the probability mass on its true answers, so there it is their share.
    """
    if task == "truthfulqa_mc2":
        labels = sample["doc"]["mc2_targets"]["labels"]
        return sum(labels) / len(labels)
    return 1 / len(sample["resps"])


def summarise(ours: dict[str, dict], reference: dict[str, dict] | None = None) -> dict[str, float | None]:
    """Means over the tasks, and ratios to the reference.

    Returns:
        `mean`, `chance` and `normalised` of ours; of a reference also `reference_mean`, `reference_normalised`;
        `raw_ratio` of the means, `coin_ratio` (chance over the reference's mean: what the raw ratio is worth), and
        `normalised_ratio`, null where the reference itself is not above chance.
    """
    mean, chance, normalised = (average(ours, name) for name in ("score", "chance", "normalised"))
    summary = {"mean": mean, "chance": chance, "normalised": normalised}
    if reference is None:
        return summary
    reference_mean, reference_normalised = average(reference, "score"), average(reference, "normalised")
    return summary | {
        "reference_mean": reference_mean,
        "reference_normalised": reference_normalised,
        "raw_ratio": mean / reference_mean,
        "coin_ratio": chance / reference_mean,
        "normalised_ratio": normalised / reference_normalised if reference_normalised > 0 else None,
    }


def average(rows: dict[str, dict], name: str) -> float:
    """The mean over tasks."""
    return sum(row[name] for row in rows.values()) / len(rows)


def write_results(folder: Path, results: dict) -> None:
    """`general.json`, `general.md`, and the same table in the terminal."""
    head, rows, words = table(results)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [head, ["---"] * len(head), *rows]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = f"# General benchmarks\n\n**{DISCLAIMER}**\n\n{markdown}\n\n" + "\n\n".join(words) + "\n"
    write_atomically(folder / TABLE_FILE, text)
    write_atomically(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    print_table("General benchmarks", head, rows)
    print(*words, f"written: {folder}/{RESULTS_FILE}, {TABLE_FILE}", sep="\n")


def table(results: dict) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, rows by task with the means last, and what the means say in words."""
    models, summary = results["models"], results["summary"]
    head = ["task", "n", "chance", *(text for name in models for text in (name, "chance taken off"))]
    rows = []
    for task, first in next(iter(models.values())).items():
        cells = [
            text
            for scores in models.values()
            for text in (
                with_error(scores[task]["score"], scores[task]["standard_error"]),
                f"{100 * scores[task]['normalised']:.1f}",
            )
        ]
        rows.append([task, f"{first['n']:,}", f"{100 * first['chance']:.1f}", *cells])
    means = [f"{100 * average(scores, name):.1f}" for scores in models.values() for name in ("score", "normalised")]
    rows.append(["mean", "", f"{100 * summary['chance']:.1f}", *means])
    if "raw_ratio" not in summary:
        return head, rows, []
    normalised = summary["normalised_ratio"]
    return (
        head,
        rows,
        [
            f"Raw mean: {summary['raw_ratio']:.1%} of the reference's; a coin has {summary['coin_ratio']:.1%} of it.",
            f"Of the reference's gain over chance: {normalised:.1%}."
            if normalised is not None
            else "The reference is not above chance on these questions: there is no gain to take a share of.",
        ],
    )


def with_error(score: float, standard_error: float | None) -> str:
    """`31.1 +- 0.5`, in percent."""
    return f"{100 * score:.1f}" + (f" +- {100 * standard_error:.1f}" if standard_error is not None else "")


if __name__ == "__main__":
    run_script(main, "modeling_pure.general")
