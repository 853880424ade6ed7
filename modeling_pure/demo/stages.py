"""The full pipeline in minutes, offline: pretrain a tiny model, evaluate it, run GRPO, evaluate again.

    pure demo [--seed N] [--twins]

Each stage is a command you could type, with a recipe of recipes/demo. Finished stages are skipped,
interrupted ones continue, and a stage whose recipe or seed has changed restarts together with all later ones.
`--twins` also trains the same model on the same prompts in three other ways: cross entropy on answers with reasons and
on answers alone, and GRPO on answers alone.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from ..console import DISCLAIMER, print_block, print_table
from ..errors import InputError
from ..medqa import formats
from ..medqa.compare import in_formulation
from ..medqa.questions import Question, read_questions
from ..medqa.report import cell
from ..medqa.results import Evaluation, read_evaluation
from ..medqa.statistics import paired, share_right
from ..options import CommandLine, check_seeds
from ..training.run_folder import METRICS_FILE, read_metrics
from . import facts, world
from .picture import draw_demo

RUNS = Path("runs/demo")
PRETRAIN = "pretrain --config recipes/demo/pretrain.yaml --seed {seed}"
GRPO = "grpo --config recipes/demo/grpo.yaml --seed {seed}"
COVERAGE = (
    "decontaminate --config recipes/demo/pretrain.yaml --documents 0 "
    "--decontaminate {runs}/world/{questions} --coverage {runs}/coverage/coverage.json"
)
EVALUATE = (
    "eval --config recipes/demo/eval.yaml --model_name_or_path {runs}/{model} --output_dir {runs}/{output} "
    "--contamination {runs}/coverage/coverage.json"
)
TWINS = {  # by what they add to the GRPO command
    "sft_reasons": "--algorithm sft",
    "sft_answers": "--algorithm sft --answer_formats text",
    "grpo_answers": "--answer_formats text",
}
HEADLINE = "generate reasoned"
COLUMNS = {HEADLINE: "with reasons", "text": "by text", "letter": "by letter"}
BEFORE, AFTER = "before GRPO", "after GRPO"
PICTURE_FILE = "demo.png"
CONSOLE = Console(highlight=False)


def main() -> int:
    """Run every stage that is not done, then show the results; 1 unless GRPO raised the accuracy."""
    parser = CommandLine(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and sampling (default: 0)")
    parser.add_argument("--twins", action="store_true", help="also train in three other ways on the same prompts")
    options = parser.parse_args()
    check_seeds(options, "seed")
    if not Path("recipes/demo").is_dir():
        raise InputError("recipes/demo: not in this folder; run the demo in a clone of the repository")
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (facts, world, formats))
    digest = run_stage("world", "", sources, build_world)
    for name, command in stages(options.seed, options.twins).items():
        recipe = Path(command.split("--config ")[1].split()[0]).read_bytes()
        digest = run_stage(name, digest, command.encode() + recipe, partial(run_command, command))
    return show_results(options.seed, options.twins)


def stages(seed: int, twins: bool) -> dict[str, str]:
    """Commands in order, keyed by output folder. The world and its questions do not depend on the seed."""
    grpo = GRPO.format(seed=seed)
    commands = {
        "coverage": COVERAGE.format(runs=RUNS, questions=world.EXAM_FILES[2]),
        "pretrain": PRETRAIN.format(seed=seed),
        "eval_before": EVALUATE.format(runs=RUNS, model="pretrain", output="eval_before"),
        "grpo": grpo,
        "eval_after": EVALUATE.format(runs=RUNS, model="grpo", output="eval_after")
        + f" --compare_with {RUNS}/eval_before",
    }
    for name, more in TWINS.items() if twins else ():
        commands[name] = f"{grpo} {more} --output_dir {RUNS}/{name}"
        commands[f"eval_{name}"] = EVALUATE.format(runs=RUNS, model=name, output=f"eval_{name}")
    return commands


def run_stage(name: str, previous: str, inputs: bytes, work: Callable[[Path], None]) -> str:
    """Do a stage's work unless its folder records that it was done with these inputs after these earlier stages."""
    folder, digest = RUNS / name, hashlib.sha256(previous.encode() + inputs).hexdigest()
    record = folder / "stage.json"
    state = json.loads(record.read_text()) if record.is_file() else {}
    if state == {"digest": digest, "done": True}:
        CONSOLE.print(f"{name}: already done, see {folder}")
        return digest
    if state.get("digest") != digest:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"digest": digest, "done": False}))
    work(folder)
    record.write_text(json.dumps({"digest": digest, "done": True}))
    return digest


def build_world(folder: Path) -> None:
    """Write texts and questions, and train the tokenizer on them."""
    CONSOLE.print(f"world: writing texts and questions to {folder}")
    world.write_world(folder)
    files = [folder / name for name in (*world.TEXT_FILES, world.EXAM_FILES[0])]
    world.train_tokenizer(files, folder / "tokenizer")


def run_command(command: str, folder: Path) -> None:
    """Print and run a `pure` command, offline; the folder is already part of it."""
    CONSOLE.print(f"\n$ pure {command}", markup=False, soft_wrap=True)  # one line, to be copied
    # Spinning threads slow each other down on a busy machine: beside one busy process, pretraining dropped from 34,000
    # to 9,000 tokens/s, and with a short spin to 14,000.
    threads = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}
    settings = {**threads, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
    program = [sys.executable, "-m", "modeling_pure", *shlex.split(command)]
    code = subprocess.run(program, env={**os.environ, **settings}).returncode
    if code:
        sys.exit(code)


def show_results(seed: int, twins: bool) -> int:
    """Print and draw the results; exit code 1 unless GRPO raised the held-out accuracy (exact McNemar, p < 0.01)."""
    names = {BEFORE: "eval_before", AFTER: "eval_after"}
    names |= {name.replace("_", " on "): f"eval_{name}" for name in (TWINS if twins else ())}
    evaluations = {name: read_evaluation("demo", str(RUNS / folder)) for name, folder in names.items()}
    questions = read_questions("questions", str(RUNS / "world" / world.EXAM_FILES[2]))
    never = np.array([question.meta_info == world.NEVER_ASKED_INFO for question in questions])
    before, after = (right(evaluations[name], HEADLINE) for name in (BEFORE, AFTER))
    picture = draw_demo(seed, {name: share_right(found) for name, found in ((BEFORE, before), (AFTER, after))}, RUNS)
    picture.savefig(RUNS / PICTURE_FILE)

    CONSOLE.rule(f"Results, seed {seed}", align="left")
    print_accuracies(f"{len(questions)} held-out questions: accuracy in % (95 % interval), chance 25", evaluations)
    print_accuracies(f"{never.sum()} of these, of a type not asked in training", evaluations, never)
    lines = {"GRPO, with reasons": in_words(before, after)}
    if twins:
        answers = right(evaluations["sft on answers"], "text")
        lines["GRPO with reasons against cross entropy on answers"] = in_words(answers, after)
        lines["the same, type not asked in training"] = in_words(answers[never], after[never])
    print_block("What changed", lines | pretraining_facts())
    print_block("A question, answered by the last model", sample_answer(questions[0]))
    files = {
        "picture": RUNS / PICTURE_FILE,
        "report": RUNS / "eval_after/report.html",
        "curves": f"{RUNS}/pretrain/curves.png, {RUNS}/grpo/curves.png",
        "models": f"{RUNS}/pretrain, {RUNS}/grpo",
    }
    print_block("Where to look", {name: str(place) for name, place in files.items()})
    CONSOLE.print(DISCLAIMER)
    change = paired(before, after)
    return 0 if change.p_value < 0.01 and change.difference > 0 else 1


def print_accuracies(title: str, evaluations: dict[str, Evaluation], mask: np.ndarray | None = None) -> None:
    """Print each evaluation's accuracies, on the questions selected by `mask`, bool (n,), or on all."""
    rows = [[name, *accuracies(evaluation, mask)] for name, evaluation in evaluations.items()]
    print_table(title, ["", *COLUMNS.values()], rows)


def accuracies(evaluation: Evaluation, mask: np.ndarray | None = None) -> list[str]:
    """Accuracies by reasons, text and letter, in percent, with their intervals."""
    found = [right(evaluation, name) for name in COLUMNS]
    return [cell(share_right(one if mask is None else one[mask])).replace(" %", "") for one in found]


def right(evaluation: Evaluation, formulation: str) -> np.ndarray:
    """Which questions are right in a formulation: bool (n,)."""
    (chosen,) = in_formulation([evaluation], formulation)
    return np.equal(chosen.predictions, chosen.gold)


def in_words(first: np.ndarray, second: np.ndarray) -> str:
    """What changed from the first to the second, bool (n,) each, with its p-value."""
    row = paired(first, second)
    changes = f"{row.only_second} became right, {row.only_first} became wrong"
    return f"{changes}, exact McNemar p = {row.p_value:.2g}"


def pretraining_facts() -> dict[str, str]:
    """Loss and speed of pretraining."""
    lines = read_metrics(RUNS / "pretrain" / METRICS_FILE)
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    return {
        "validation loss, first to last": f"{losses[0]:.3f} to {losses[-1]:.3f} nats per token",
        "pretraining speed, median": f"{speeds[len(speeds) // 2]:,.0f} tokens/s" if speeds else "not measured",
    }


def sample_answer(question: Question) -> dict[str, str]:
    """A question, and the trained model's greedy answer with reasons, through the Auto classes."""
    disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(RUNS / "grpo")
    tokenizer = AutoTokenizer.from_pretrained(RUNS / "grpo")
    inputs = tokenizer(formats.format_prompt(question, "reasoned"), return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = str(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
    return {
        "question": question.question,
        "reasoning": " ".join(answer.split()),
        "right answer": question.options[question.answer],
    }
