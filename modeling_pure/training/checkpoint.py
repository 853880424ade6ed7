"""Which checkpoints are complete."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line

STATE_FILE = "trainer_state.json"
FILE_LIST = "checkpoint_files.json"
CARD = "README.md"  # not in the list: evaluations write their accuracies into it later


def checkpoint_folders(output_dir: str | Path) -> list[tuple[int, Path]]:
    """The steps and checkpoint folders of a run in their order, complete or not."""
    numbered = [(folder.name.removeprefix("checkpoint-"), folder) for folder in Path(output_dir).glob("checkpoint-*")]
    return sorted((int(step), folder) for step, folder in numbered if step.isdigit())


def write_file_list(folder: Path) -> None:
    """List the size of every file of a checkpoint but its card; a file that changes after this counts as damage."""
    apart = (folder / CARD, folder / FILE_LIST)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file not in apart]
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
        if name == CARD:  # listed by former versions
            continue
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes of {size:,}"
    return None


def complete_step(folder: Path) -> int:
    """The step of a checkpoint; raises `InputError` if it is not complete."""
    if fault := checkpoint_fault(folder):
        if numbered := checkpoint_folders(folder):  # a run's own folder, perhaps of a finished one
            cure = f"resume from one of its checkpoints, such as {numbered[-1][1]}"
        else:
            cure = "give a checkpoint-N folder"
        raise InputError(
            f"resume_from_checkpoint: '{folder}' is not a complete checkpoint: {fault}; {cure}, or leave the option "
            "out: a run continues from its last checkpoint by itself"
        )
    return int(folder.name.removeprefix("checkpoint-"))


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run; prints which damaged ones it skipped."""
    for _, folder in reversed(checkpoint_folders(output_dir)):
        if not (fault := checkpoint_fault(folder)):
            return folder
        print(f"skipping {folder}: {fault}")
    return None


def require_optimizer(checkpoint: Path, by_deepspeed: bool) -> None:
    """Raise `InputError` for a checkpoint without the optimizer that a run needs: DeepSpeed keeps its own.

    All other kinds of runs write and read the same: one process, DDP, FSDP2.
    """
    if by_deepspeed and not any(checkpoint.glob("global_step*")):
        raise InputError(f"resume_from_checkpoint: '{checkpoint}' was written without DeepSpeed; resume it without")
    if not by_deepspeed and not (checkpoint / "optimizer.pt").is_file():
        raise InputError(
            f"resume_from_checkpoint: '{checkpoint}' has no optimizer.pt; it was saved under DeepSpeed or by "
            "save_only_model: resume it as it was written, or start in another output_dir"
        )


def callback_attributes(checkpoint: str | Path, callback: str) -> dict[str, Any]:
    """The saved state of a callback; raises `InputError` if another kind of run wrote the checkpoint."""
    state = json.loads((Path(checkpoint) / STATE_FILE).read_text())
    try:
        attributes: dict[str, Any] = state["stateful_callbacks"][callback]["attributes"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}: was not written by this kind of run (no {callback} state)") from error
    return attributes
