"""What a run's folder says about how it was made, and whether a recipe may go on from one of its checkpoints."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import TrainingArguments

from ..atomic import write_atomically
from ..errors import InputError

RECIPE_FILE, LAUNCHES_FILE, CHECKPOINT_RECIPE = "recipe.yaml", "launches.jsonl", "recipe.json"
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")
# Changing one of these on resume makes the curve meaningless. `sequences_per_step` is the batch of
# all devices, which they may share in another way; paths may move, the data say themselves whether they are the same.
FIXED = (
    *("preset", "model_overrides", "sources", "max_seq_length", "document_mask", "grpo_holdout", "decontaminate"),
    *("sequences_per_step", "seed", "data_seed", "optimizer", "optim", "optim_args"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
)
ALWAYS_FIXED = ("preset", "model_overrides", "optimizer", "optim")
MAY_MOVE = ("path", "validation_path", "passages")

# A merged recipe: option names to values. A checkpoint's `recipe.json` also has `sequences_per_step`, and every field
# of each entry of `sources`.
Recipe = dict[str, Any]


def check_recipe(checkpoint: Path, recipe: Recipe, allow_change: bool = False) -> None:
    """Raise `InputError`, with the differences, where `recipe` cannot go on from a checkpoint.

    Args:
        recipe: the merged recipe, its sources complete, and `sequences_per_step`: as a checkpoint holds them in its
            `recipe.json`.
        allow_change: look only at what the checkpoint's tensors depend on.
    """
    try:
        before: Recipe = json.loads((checkpoint / CHECKPOINT_RECIPE).read_text())
    except OSError as error:
        raise InputError(f"{checkpoint}: was not written by this kind of run (no {CHECKPOINT_RECIPE})") from error
    keys = [key for key in (ALWAYS_FIXED if allow_change else FIXED) if key in recipe or key in before]
    changes = [line for key in keys for line in differences(key, before.get(key), recipe.get(key))]
    if changes:
        otherwise = "" if allow_change else ", or say --allow_recipe_change true"
        raise InputError(
            f"{checkpoint} was written with another recipe: {'; '.join(changes)}. "
            f"Put it back, or take another output_dir{otherwise}"
        )


def differences(key: str, before: Any, now: Any) -> list[str]:
    """Where two values of a key differ, mapping by mapping: `sources.c4.weight: 0.3, was 0.2`."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if name not in MAY_MOVE]
        return [line for name in names for line in differences(f"{key}.{name}", before.get(name), now.get(name))]
    if isinstance(before, dict) or isinstance(now, dict):
        return [f"{key}: gone" if now is None else f"{key}: new"]
    return [] if before == now else [f"{key}: {now}, was {before}"]


def folder_of(args: TrainingArguments) -> str:
    """The run folder. TrainingArguments declares it as optional but always sets it."""
    return cast(str, args.output_dir)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe as it was merged from file and command line; `--config` reads it."""
    write_atomically(folder / RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def note_launch(folder: Path, step: int, world_size: int, device: torch.device) -> None:
    """Add a line to `launches.jsonl`: when, from which step, by which command, with what."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": " ".join(hide_tokens(sys.argv)),
        "git": git_commit(),
        "python": sys.version.split()[0],
        "packages": {package: version(package) for package in PACKAGES} | {"torch": torch.__version__},  # and its CUDA
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
        "processes": world_size,
    }
    with (folder / LAUNCHES_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def hide_tokens(arguments: list[str]) -> list[str]:
    """A command line without what is secret in it."""
    shown: list[str] = []
    for argument in arguments:
        secret = "token=" in argument or (shown and shown[-1].endswith("token"))
        shown.append("(hidden)" if secret else argument)
    return shown


def git_commit() -> str | None:
    """The commit of this code, with a + where files differ from it; in an image, the one it was built from."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT")
