"""Starts and resumes runs of train_pretrain.py, and compares them bit for bit."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from modeling_pure.training.checkpoint import STATE_FILE, checkpoint_fault, checkpoint_folders
from modeling_pure.training.saving import STAGING
from tests.processes import run
from tests.scripts.conftest import metrics

APART = ("tokens_per_second", "hours_left", "mfu", "epoch")  # speeds; epochs, which mean nothing here


def train(recipe: Path, folder: Path, *options, expect: int = 0) -> CompletedProcess:
    """Train by a recipe, in a process of its own."""
    return run("train_pretrain.py", "--config", recipe, "--output_dir", folder, *options, expect=expect)


def launches(folder: Path) -> list[dict]:
    """The recorded launches of a run."""
    return [json.loads(line) for line in (folder / "launches.jsonl").read_text().splitlines()]


def start_from(pretrained, folder, step: int):
    """A run's folder as it was after a checkpoint."""
    shutil.copytree(pretrained / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    lines = [json.dumps(line) + "\n" for line in metrics(pretrained) if line["step"] <= step]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def same_weights(first, second) -> bool:
    """Whether two runs ended with the same model, bit for bit."""
    return same(*(load_file(folder / "model.safetensors") for folder in (first, second)))


def checkpoints(folder) -> list[int]:
    """The steps of a run's checkpoints, all of which must be complete."""
    numbered = checkpoint_folders(folder)
    assert [checkpoint_fault(folder) for _, folder in numbered] == [None] * len(numbered)
    return [step for step, _ in numbered]


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same(first, second) -> bool:
    """Whether two values that torch.save wrote are equal, bit for bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def state_of(checkpoint) -> dict:
    """A checkpoint's trainer_state.json without places and speeds."""
    state = json.loads((checkpoint / STATE_FILE).read_text())
    del state["best_model_checkpoint"], state["epoch"]
    state["log_history"] = untimed(state["log_history"])
    return state


def untimed(lines: list[dict]) -> list[dict]:
    """Log lines without `APART`."""
    return [{name: value for name, value in line.items() if name not in APART} for line in lines]


def assert_same_run(straight, other, step: int) -> None:
    """Two runs ended alike: model, optimizer, schedule, random numbers, place in the data, every line of the log."""
    assert same_weights(straight, other)
    first, second = straight / f"checkpoint-{step}", other / f"checkpoint-{step}"
    for file in sorted(first.glob("*.pt*")):
        with safe_globals():
            states = [torch.load(folder / file.name, weights_only=True) for folder in (first, second)]
        assert same(*states), f"{file.name} differs"
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {file.name for file in first.iterdir()}
    assert state_of(first) == state_of(second)
    assert lines_of_training(straight) == lines_of_training(other)
    assert not (other / STAGING).exists()


def lines_of_training(folder) -> list[dict]:
    """The losses of a run, one per step; the final validation may appear twice."""
    lines = untimed([line for line in metrics(folder) if "loss" in line or "eval_loss" in line])
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, lines[-1]["step"] + 1))
    return [line for number, line in enumerate(lines) if line not in lines[:number]]
