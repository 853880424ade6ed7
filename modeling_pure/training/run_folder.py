"""The files of a run folder besides checkpoints: recipe, launches, logged metrics, curves."""

import json
import math
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, default_logdir

from ..atomic import write_atomically
from ..errors import InputError
from ..recipe import Recipe

RECIPE_FILE, LAUNCHES_FILE, CHECKPOINT_RECIPE = "recipe.yaml", "launches.jsonl", "recipe.json"
METRICS_FILE = "metrics.jsonl"
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")


def folder_of(args: TrainingArguments) -> str:
    """The run folder, which TrainingArguments declares as optional but always sets."""
    return cast(str, args.output_dir)


def check_recipe(folder: Path, recipe: Recipe, allow_change: bool = False) -> None:
    """Raise `InputError` with the differences unless `recipe` may resume from a checkpoint.

    Args:
        folder: a checkpoint, or the folder of a finished run.
        allow_change: only check what the checkpoint's tensors depend on.
    """
    try:
        before = json.loads((folder / CHECKPOINT_RECIPE).read_text())
    except OSError as error:
        raise InputError(f"{folder}: another kind of run wrote this folder (no {CHECKPOINT_RECIPE})") from error
    if missing := [name for name in recipe.tensors if name not in before]:
        raise InputError(f"{folder}: another kind of run wrote this folder (its recipe has no {missing[0]})")
    if changes := recipe.changes(before, allow_change):
        otherwise = "" if recipe.changes(before, allowed=True) else ", or set --allow_recipe_change true"
        raise InputError(
            f"{folder} was written with another recipe: {'; '.join(changes)}. Restore these values, or use another "
            f"output_dir{otherwise}"
        )


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write a recipe as given, for `--config`, and as resolved, for `check_recipe`."""
    # `inf` as on a command line; YAML would write .inf.
    options = {name: "inf" if value == math.inf else value for name, value in recipe.options.items()}
    write_atomically(folder / RECIPE_FILE, yaml.safe_dump(options, sort_keys=False, allow_unicode=True))
    write_atomically(folder / CHECKPOINT_RECIPE, json.dumps(recipe.resolved, indent=2) + "\n")


def note_launch(folder: Path, step: int, world_size: int, device: torch.device) -> None:
    """Append time, step, command, versions and machine of this launch to `launches.jsonl`."""
    command: list[str] = []
    for argument in sys.argv:
        secret = "token=" in argument or (command and command[-1].endswith("token"))
        command.append("(hidden)" if secret else argument)
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": " ".join(command),
        "git": git_commit(),
        "python": sys.version.split()[0],
        "packages": {package: version(package) for package in PACKAGES} | {"torch": torch.__version__},  # with +cuXXX
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
        "processes": world_size,
    }
    with (folder / LAUNCHES_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def git_commit() -> str | None:
    """The commit of this code, with a + if files differ from it; in an image, the commit it was built from."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT")


class MetricsFile(TrainerCallback):
    """Appends each log line to `metrics.jsonl` in the run folder; a resumed run drops lines after its checkpoint."""

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / METRICS_FILE

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *others: Any, **kwargs: Any) -> None:
        """Drop the lines after the step that the run resumes from."""
        if state.is_world_process_zero:
            kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step > 0]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: TrainingArguments, state: TrainerState, *others: Any, **kwargs: Any) -> None:
        """Write a line, with null for NaN and inf, which JSON lacks."""
        if state.is_world_process_zero:
            logs = kwargs["logs"].items()
            line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in logs}
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **line}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without an incomplete last line."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def keep_tensorboard_inside(trainer: Trainer) -> None:
    """Let TensorBoard write into the run's folder also before training, where Trainer would write into ./runs.

    A run that only evaluates, or that was stopped after its last step, logs without ever beginning to train.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(folder_of(trainer.args), default_logdir()))
