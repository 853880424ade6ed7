"""Checkpoint folders: which are complete, and what is wrong with the others."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line

STATE_FILE = "trainer_state.json"
FILE_LIST = "checkpoint_files.json"
CARD = "README.md"  # not in the list: evaluations add accuracies to it later


def checkpoint_folders(output_dir: str | Path) -> list[tuple[int, Path]]:
    """A run's steps and checkpoint folders in order, complete or not."""
    numbered = [(folder.name.removeprefix("checkpoint-"), folder) for folder in Path(output_dir).glob("checkpoint-*")]
    return sorted((int(step), folder) for step, folder in numbered if step.isdigit())


def write_file_list(folder: Path) -> None:
    """List the size of every file of a checkpoint except its card; a later change counts as damage."""
    excluded = (folder / CARD, folder / FILE_LIST)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file not in excluded]
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    (folder / FILE_LIST).write_text(json.dumps(sizes, indent=2) + "\n")


def checkpoint_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if it is complete."""
    try:
        sizes = json.loads((folder / FILE_LIST).read_text())
        step = json.loads((folder / STATE_FILE).read_text())["global_step"]
    except (OSError, ValueError, KeyError) as error:
        return f"no readable {FILE_LIST} and {STATE_FILE} ({first_line(error)})"
    if folder.name != f"checkpoint-{step}":
        return f"{STATE_FILE} is of step {step}"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
    return None


def complete_step(folder: Path) -> int:
    """The step of a checkpoint; raises `InputError` if it is incomplete."""
    if fault := checkpoint_fault(folder):
        numbered = checkpoint_folders(folder)  # if it is a run folder
        one = numbered[-1][1] if numbered else "a checkpoint-N folder"
        raise InputError(
            f"resume_from_checkpoint: '{folder}' is not a complete checkpoint: {fault}; set it to {one}, or leave it "
            "out to resume from the run's last checkpoint"
        )
    return int(folder.name.removeprefix("checkpoint-"))


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """A run's newest complete checkpoint; prints the damaged ones that it skips."""
    for _, folder in reversed(checkpoint_folders(output_dir)):
        if not (fault := checkpoint_fault(folder)):
            return folder
        print(f"skipping {folder}: {fault}")
    return None


def require_optimizer(checkpoint: Path, by_deepspeed: bool) -> None:
    """Raise `InputError` for a checkpoint without optimizer state that this run can load.

    DeepSpeed has its own format; one process, DDP and FSDP2 share one.
    """
    if by_deepspeed and not any(checkpoint.glob("global_step*")):
        raise InputError(f"resume_from_checkpoint: '{checkpoint}' was written without DeepSpeed; resume it without")
    if not by_deepspeed and not (checkpoint / "optimizer.pt").is_file():
        raise InputError(
            f"resume_from_checkpoint: '{checkpoint}' has no optimizer.pt (it was saved under DeepSpeed or with "
            "save_only_model); resume it under DeepSpeed, or use another output_dir"
        )


def callback_attributes(checkpoint: str | Path, callback: str) -> dict[str, Any]:
    """A callback's saved state; raises `InputError` if another kind of run wrote the checkpoint."""
    state = json.loads((Path(checkpoint) / STATE_FILE).read_text())
    try:
        attributes: dict[str, Any] = state["stateful_callbacks"][callback]["attributes"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}: another kind of run wrote this checkpoint (no {callback} state)") from error
    return attributes
