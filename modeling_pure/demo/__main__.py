"""The main job in minutes, offline: pretrain a tiny model, measure it, GRPO, measure it again.

    python -m modeling_pure.demo [--seed N]

Runs the three scripts with recipes/demo/*.yaml, each as a command you could type. A stage that is done is not run
again, one that was interrupted goes on, and one whose recipe or seed has changed starts anew with all that follow it.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..console import DISCLAIMER
from ..medqa import formats
from ..medqa.compare import compare_evaluations
from ..medqa.questions import read_questions
from ..medqa.results import read_evaluation
from ..training.callbacks import METRICS_FILE, read_metrics
from . import facts, world

RUNS = Path("runs/demo")
EVALUATE = (
    "eval_medqa.py --config recipes/demo/eval.yaml --model_name_or_path {model} --output_dir {output} "
    f"--contamination {RUNS / 'coverage' / 'coverage.json'}"
)
COVERAGE = (
    "-m modeling_pure.data.decontaminate --config recipes/demo/pretrain.yaml --documents 0 "
    "--decontaminate {questions} --coverage {output}/coverage.json"
)
CONSOLE = Console(highlight=False)


def main() -> int:
    """Run every stage that is not done, then show what came out; 1 where GRPO did not raise the accuracy."""
    parser = argparse.ArgumentParser(prog="python -m modeling_pure.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and sampling (default: 0)")
    seed = parser.parse_args().seed
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (facts, world, formats))
    digest = run_stage("world", "", sources, build_world)
    for name, command in stages(seed).items():
        recipe = Path(command.split("--config ")[1].split()[0]).read_bytes()
        digest = run_stage(name, digest, command.encode() + recipe, running(command))
    return show_results(seed)


def stages(seed: int) -> dict[str, str]:
    """The commands, in order, by the folders they fill. The world and its questions are the same for every seed."""
    return {
        "coverage": COVERAGE.format(questions=RUNS / "world" / world.EXAM_FILES[2], output=RUNS / "coverage"),
        "pretrain": f"train_pretrain.py --config recipes/demo/pretrain.yaml --seed {seed}",
        "eval_before": EVALUATE.format(model=RUNS / "pretrain", output=RUNS / "eval_before"),
        "grpo": f"train_grpo.py --config recipes/demo/grpo.yaml --seed {seed}",
        "eval_after": EVALUATE.format(model=RUNS / "grpo", output=RUNS / "eval_after")
        + f" --compare_with {RUNS / 'eval_before'}",
    }


def run_stage(name: str, previous: str, inputs: bytes, work: Callable[[Path], None]) -> str:
    """Do a stage's work unless its folder says that it was done from the same inputs after the same earlier stages."""
    folder, digest = RUNS / name, hashlib.sha256(previous.encode() + inputs).hexdigest()
    record = folder / "stage.json"
    state = json.loads(record.read_text()) if record.is_file() else None
    if state == {"digest": digest, "done": True}:
        CONSOLE.print(f"{name}: done before, see {folder}")
        return digest
    if state is None or state["digest"] != digest:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"digest": digest, "done": False}))
    work(folder)
    record.write_text(json.dumps({"digest": digest, "done": True}))
    return digest


def build_world(folder: Path) -> None:
    """Texts, questions and the tokenizer trained on them."""
    CONSOLE.print(f"world: writing texts and questions to {folder}")
    world.write_world(folder)
    files = [folder / name for name in (*world.TEXT_FILES, world.EXAM_FILES[0])]
    world.train_tokenizer(files, folder / "tokenizer")


def running(command: str) -> Callable[[Path], None]:
    """The work of a stage that runs one command; the command names the folder."""
    return lambda folder: run_command(command)


def run_command(command: str) -> None:
    """Run one of the scripts, offline, showing the command as one could type it."""
    CONSOLE.rule(f"python {command}", align="left")
    # Threads that wait by spinning stand in each other's way as soon as the machine does anything else: beside one
    # busy process, pretraining fell from 34,000 to 9,000 tokens/s, with a short spin to 14,000.
    threads = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}
    settings = {**threads, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
    code = subprocess.run([sys.executable, *shlex.split(command)], env={**os.environ, **settings}).returncode
    if code:
        sys.exit(code)


def show_results(seed: int) -> int:
    """The table at the end; exit code 1 unless the held-out accuracy rose (exact McNemar, p < 0.01)."""
    evaluations = [read_evaluation("demo", str(RUNS / f"eval_{when}")) for when in ("before", "after")]
    (mcnemar,) = compare_evaluations(evaluations[0], evaluations[1:])
    before, after = (evaluation.results for evaluation in evaluations)
    lines = read_metrics(RUNS / "pretrain" / METRICS_FILE)
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    table = Table(title=f"What the demo did (seed {seed})", title_justify="left", show_header=False)
    table.add_row("held-out loss, first to last", f"{losses[0]:.3f} to {losses[-1]:.3f} nats per token")
    table.add_row(
        "pretraining speed, median", f"{speeds[len(speeds) // 2]:,.0f} tokens/s" if speeds else "not measured"
    )
    table.add_row("held-out questions", f"{before['metrics']['n']} (chance 25.0 %)")
    table.add_row("accuracy before GRPO", describe_accuracy(before["metrics"]))
    table.add_row("accuracy after GRPO", describe_accuracy(after["metrics"]))
    table.add_row(
        "exact McNemar",
        f"{mcnemar['only_second']} became right, {mcnemar['only_first']} became wrong, p = {mcnemar['p_value']:.2g}",
    )
    table.add_row("a sampled answer", sample_answer())
    table.add_row("models", f"{RUNS}/pretrain, {RUNS}/grpo (AutoModelForCausalLM loads them)")
    table.add_row("report", f"{RUNS}/eval_after/report.html")
    table.add_row("curves", f"{RUNS}/pretrain/curves.png, {RUNS}/grpo/curves.png")
    CONSOLE.print(table)
    CONSOLE.print(DISCLAIMER)
    return 0 if mcnemar["p_value"] < 0.01 and mcnemar["only_second"] > mcnemar["only_first"] else 1


def describe_accuracy(metrics: dict[str, Any]) -> str:
    """Accuracy with its Wilson interval."""
    low, high = metrics["wilson_interval"]
    return f"{metrics['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"


def sample_answer() -> str:
    """The trained model's greedy answer to the first held-out question, through the Auto classes."""
    model: Any = AutoModelForCausalLM.from_pretrained(RUNS / "grpo")
    tokenizer = AutoTokenizer.from_pretrained(RUNS / "grpo")
    question = read_questions("questions", str(RUNS / "world" / world.EXAM_FILES[2]))[0]
    inputs = tokenizer(formats.format_prompt(question), return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    answer = str(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
    return f"{question.question}\n{answer.strip()} (right: {question.letter})"


if __name__ == "__main__":
    sys.exit(main())
