"""The main job in minutes, offline: pretrain a tiny model, measure it, GRPO, measure it again.

    python -m modeling_pure.demo [--seed N] [--twins]

Runs the three scripts with recipes/demo/*.yaml, each as a command you could type. Stages that are done are skipped,
interrupted ones continue, and a stage whose recipe or seed has changed restarts with all that follow it. `--twins`
also trains the same model on the same prompts in three other ways: cross entropy on answers with reasons and on
answers alone, and GRPO on answers alone.
"""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..console import DISCLAIMER, print_block, print_table
from ..errors import run_script
from ..medqa import formats
from ..medqa.compare import paired
from ..medqa.questions import Question, read_questions
from ..medqa.results import read_evaluation
from ..options import CommandLine, check_seeds
from ..training.callbacks import METRICS_FILE, read_metrics
from . import facts, table, world

RUNS = Path("runs/demo")
EVALUATE = (
    "eval_medqa.py --config recipes/demo/eval.yaml --model_name_or_path {model} --output_dir {output} "
    f"--contamination {RUNS / 'coverage' / 'coverage.json'}"
)
TWINS = {  # by what they add to the GRPO command
    "sft_reasons": "--algorithm sft",
    "sft_answers": "--algorithm sft --answer_formats text",
    "grpo_answers": "--answer_formats text",
}
COVERAGE = (
    "-m modeling_pure.commands.decontaminate --config recipes/demo/pretrain.yaml --documents 0 "
    "--decontaminate {questions} --coverage {output}/coverage.json"
)
CONSOLE = Console(highlight=False)


def main() -> int:
    """Run every stage that is not done, then show what came out; 1 where GRPO did not raise the accuracy."""
    parser = CommandLine("demo", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and sampling (default: 0)")
    parser.add_argument("--twins", action="store_true", help="also train in three other ways on the same prompts")
    options = parser.parse_args()
    check_seeds(options, "seed")
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (facts, world, formats))
    digest = run_stage("world", "", sources, build_world)
    for name, command in stages(options.seed, options.twins).items():
        recipe = Path(command.split("--config ")[1].split()[0]).read_bytes()
        digest = run_stage(name, digest, command.encode() + recipe, running(command))
    return show_results(options.seed, options.twins)


def stages(seed: int, twins: bool) -> dict[str, str]:
    """The commands, in order, by the folders they fill. The world and its questions are the same for every seed."""
    grpo = f"train_grpo.py --config recipes/demo/grpo.yaml --seed {seed}"
    commands = {
        "coverage": COVERAGE.format(questions=RUNS / "world" / world.EXAM_FILES[2], output=RUNS / "coverage"),
        "pretrain": f"train_pretrain.py --config recipes/demo/pretrain.yaml --seed {seed}",
        "eval_before": EVALUATE.format(model=RUNS / "pretrain", output=RUNS / "eval_before"),
        "grpo": grpo,
        "eval_after": EVALUATE.format(model=RUNS / "grpo", output=RUNS / "eval_after")
        + f" --compare_with {RUNS / 'eval_before'}",
    }
    for name, more in TWINS.items() if twins else ():
        commands[name] = f"{grpo} {more} --output_dir {RUNS / name}"
        commands[f"eval_{name}"] = EVALUATE.format(model=RUNS / name, output=RUNS / f"eval_{name}")
    return commands


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


def show_results(seed: int, twins: bool) -> int:
    """The tables at the end; exit code 1 unless GRPO raised the held-out accuracy (exact McNemar, p < 0.01)."""
    names = {"before GRPO": "eval_before", "after GRPO": "eval_after"}
    names |= {name.replace("_", " on "): f"eval_{name}" for name in (TWINS if twins else ())}
    evaluations = {name: read_evaluation("demo", str(RUNS / folder)) for name, folder in names.items()}
    questions = heldout_questions()
    never, headline = table.never_asked(questions), table.HEADLINE
    before, after = (table.right(evaluations[name], headline) for name in ("before GRPO", "after GRPO"))
    print_table("Held-out accuracy (95 % Wilson)", table.HEAD, table.accuracies(evaluations, questions))
    lines = {
        "held-out questions": f"{len(questions)} (chance 25.0 %), {never.sum()} of them of a kind that is never asked",
        "GRPO, with reasons": table.in_words(before, after),
    }
    if twins:
        answers = table.right(evaluations["sft on answers"], "text")
        lines["cross entropy on answers to GRPO"] = table.in_words(answers, after)
        lines["the same, never asked"] = table.in_words(answers[never], after[never])
    lines |= {
        **pretraining_facts(),
        "a greedy answer": sample_answer(questions[0]),
        "models": f"{RUNS}/pretrain, {RUNS}/grpo (AutoModelForCausalLM loads them)",
        "report": f"{RUNS}/eval_after/report.html",
        "curves": f"{RUNS}/pretrain/curves.png, {RUNS}/grpo/curves.png",
    }
    print_block(f"What the demo did (seed {seed})", lines)
    CONSOLE.print(DISCLAIMER)
    change = paired(before, after)
    return 0 if change["p_value"] < 0.01 and change["difference"] > 0 else 1


def heldout_questions() -> list[Question]:
    """The questions that were evaluated."""
    return read_questions("questions", str(RUNS / "world" / world.EXAM_FILES[2]))


def pretraining_facts() -> dict[str, str]:
    """Loss and speed of pretraining."""
    lines = read_metrics(RUNS / "pretrain" / METRICS_FILE)
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    return {
        "held-out loss, first to last": f"{losses[0]:.3f} to {losses[-1]:.3f} nats per token",
        "pretraining speed, median": f"{speeds[len(speeds) // 2]:,.0f} tokens/s" if speeds else "not measured",
    }


def sample_answer(question: Question) -> str:
    """The trained model's greedy answer with reasons, through the Auto classes."""
    model: Any = AutoModelForCausalLM.from_pretrained(RUNS / "grpo")
    tokenizer = AutoTokenizer.from_pretrained(RUNS / "grpo")
    inputs = tokenizer(formats.format_prompt(question, "reasoned"), return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = str(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
    return f"{question.question} Reasoning: {answer.strip()} (right: {question.options[question.answer]})"


if __name__ == "__main__":
    run_script(main, "modeling_pure.demo")
