"""The whole line in minutes: pretraining on prepared sequences, MedQA dev questions, GRPO, the same questions again.

After 350 steps (11M tokens) MedQA is at chance; the purpose is to see that everything runs, its speed and its memory.
"""

import json
import runpy
import shlex
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import DEVICE
from modeling_pure.demo import world
from modeling_pure.medqa.results import RESULTS_FILE
from modeling_pure.training.run_folder import METRICS_FILE, read_metrics

from .prepare import GRPO_RECIPE, PRETRAIN_RECIPE, TEXTS, pack, paths
from .runner import Setting

TINY_PRETRAIN = (
    *("--preset", "tiny", "--max_seq_length", "128", "--tokens_per_step", "1024", "--max_steps", "20"),
    *("--warmup_steps", "2", "--validation_sequences", "8", "--dataloader_num_workers", "0"),
)
TINY_GRPO = (
    *("--prompts_per_step", "2", "--num_generations", "4", "--max_completion_length", "12", "--max_steps", "4"),
    *("--warmup_steps", "1", "--medqa_dev_questions", "8"),
)
ROOT = Path(__file__).parents[2]
TINY_DOCUMENTS, TINY_QUESTIONS = 400, 64
ON_CPU = ("--use_cpu", "true") if DEVICE == "cpu" else ()


def folder_of(setting: Setting) -> Path:
    """The folder from `prepare`, or with `--tiny` one of generated data."""
    return setting.work / "data" if setting.tiny else setting.data


def pretrain_options(setting: Setting) -> list[str]:
    """Changes to the recipe, for writing and for reading sequences."""
    folder = folder_of(setting)
    if not setting.tiny:
        return paths(folder)
    texts = zip(TEXTS, world.TEXT_FILES, strict=True)
    sources = [text for name, file in texts for text in (f"--sources.{name}.path", str(folder / file))]
    return [*paths(folder), *sources, *TINY_PRETRAIN]


def write_tiny_folder(setting: Setting) -> None:
    """Write the demo's data in place of the real data."""
    folder = folder_of(setting)
    world.write_world(folder, documents=TINY_DOCUMENTS)
    world.train_tokenizer([folder / name for name in (*world.TEXT_FILES, world.EXAM_FILES[0])], folder / "tokenizer")
    for name, file in (("train", world.EXAM_FILES[0]), ("dev", world.EXAM_FILES[2])):
        lines = (folder / file).read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:TINY_QUESTIONS] if name == "dev" else lines))
    pack(folder, *pretrain_options(setting))


def pretraining(setting: Setting) -> Iterator[dict]:
    """Loss, speed and memory of a pretraining run on its own schedule."""
    if setting.tiny:
        write_tiny_folder(setting)
    run, rows = setting.work / "pretrain", folder_of(setting) / "rows"
    options = ("--pretokenized_dir", rows, "--output_dir", run, *pretrain_options(setting), *ON_CPU)
    try:
        run_in_process("train_pretrain.py", "--config", PRETRAIN_RECIPE, *options)
    finally:  # report what was logged even if the run fails
        lines = read_metrics(run / METRICS_FILE)
        yield {
            "what": "pretraining",
            "steps": max((line["step"] for line in lines), default=0),
            **first_and_last(lines, "loss", "eval_loss"),
            **medians(lines, "tokens_per_second", "mfu", "peak_memory_gb"),
        }
    shutil.copyfile(run / "curves.png", setting.out / "line-pretraining.png")


def grpo(setting: Setting) -> Iterator[dict]:
    """Reward, speed and statistics of each refinement in a short GRPO run."""
    run, start, file = (setting.work / "grpo", setting.work / "pretrain", folder_of(setting) / "train.jsonl")
    options = ("--model_name_or_path", start, "--questions", file, "--output_dir", run)
    sizes = TINY_GRPO if setting.tiny else ()
    run_in_process("train_grpo.py", "--config", GRPO_RECIPE, *options, *sizes, *ON_CPU)
    lines = read_metrics(run / METRICS_FILE)
    yield {
        "what": "GRPO",
        "steps": max(line["step"] for line in lines),
        **first_and_last(lines, "reward", "entropy"),
        **medians(lines, "step_time", "completions/mean_length", "sampling/kept_tokens", "kl"),
    }


def questions(setting: Setting, model: str) -> Iterator[dict]:
    """Accuracy of a model on all dev questions, with its interval, and of constant letters."""
    out = setting.work / f"eval-{model}"
    file = folder_of(setting) / "dev.jsonl"
    options = ("--questions", file, "--split", "all", "--batch_size", "64", "--output_dir", out)
    run_in_process("eval_medqa.py", "--model_name_or_path", setting.work / model, *options)
    metrics = json.loads((out / RESULTS_FILE).read_text())["metrics"]
    kept = ("n", "accuracy", "wilson_interval", "always")
    yield {"what": f"MedQA dev, {model}", **{name: metrics[name] for name in kept}}


def first_and_last(lines: list[dict], *names: str) -> dict[str, list[float]]:
    """The first and last logged values of each metric."""
    found = {name: [line[name] for line in lines if name in line] for name in names}
    return {name: [round(values[0], 4), round(values[-1], 4)] for name, values in found.items() if values}


def medians(lines: list[dict], *names: str) -> dict[str, float]:
    """Medians without the first log line, which includes compilation."""
    found = {name: [line[name] for line in lines if line.get(name) is not None] for name in names}
    return {name: round(statistics.median(values[1:] or values), 4) for name, values in found.items() if values}


def run_in_process(script: str, *options: object) -> None:
    """Run a script of the repository in this process, which has imported everything; raises if it fails."""
    sys.argv = [script, *map(str, options)]
    print(shlex.join(sys.argv), flush=True)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{script}: exit code {ended.code}") from ended
