"""Which checkpoints can be trusted, and whether a folder holds a model at all."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerState

from ..errors import InputError, first_line

STATE_FILE = "trainer_state.json"


def checkpoint_step(folder: Path) -> int | None:
    """The step of a complete checkpoint folder; None where it was cut off while it was written.

    Trainer writes `trainer_state.json` last, so a checkpoint is whole when that file is whole and names its step.
    """
    try:
        step = json.loads((folder / STATE_FILE).read_text())["global_step"]
    except (OSError, ValueError, KeyError):
        return None
    return step if folder.name == f"checkpoint-{step}" else None


def last_complete_checkpoint(output_dir: str) -> Path | None:
    """The newest whole checkpoint of a run; says which half-written ones it passed over."""
    complete = None
    for folder in sorted(Path(output_dir).glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime):
        step = checkpoint_step(folder)
        if step is None:
            print(f"passing over {folder}: it is not complete")
        elif complete is None or step > complete[0]:
            complete = (step, folder)
    return complete[1] if complete else None


def resume_point(output_dir: str, resume_from_checkpoint: str | None) -> Path | None:
    """The checkpoint to go on from: the one that is asked for, else the run's last complete one, else none.

    Raises:
        InputError: the folder that is asked for is not a complete checkpoint.
    """
    if not resume_from_checkpoint:
        return last_complete_checkpoint(output_dir)
    folder = Path(resume_from_checkpoint)
    if checkpoint_step(folder) is None:
        raise InputError(f"resume_from_checkpoint: '{folder}' is not a complete checkpoint (no whole {STATE_FILE})")
    return folder


def callback_attributes(checkpoint: str | Path, callback: str) -> dict:
    """What a stateful callback left in a checkpoint's trainer_state.json.

    Raises:
        InputError: the checkpoint was written by another kind of run.
    """
    state = json.loads((Path(checkpoint) / STATE_FILE).read_text())
    try:
        return state["stateful_callbacks"][callback]["attributes"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}: was not written by this kind of run (no {callback} state)") from error


def already_finished(output_dir: str, checkpoint: Path | None, max_steps: int) -> bool:
    """Whether a run's folder holds the model of its last step already; says so."""
    has_model = any(Path(output_dir).glob("*.safetensors"))
    finished = checkpoint is not None and has_model and checkpoint_step(checkpoint) >= max_steps
    if finished:
        print(f"{output_dir}: finished before, at step {checkpoint_step(checkpoint)}; raise max_steps to go on")
    return finished


def restore_finished(trainer: Trainer, checkpoint: str) -> None:
    """Take up a run that was stopped after its last step: Trainer would make one step too many."""
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE))


def check_model(key: str, name_or_path: str) -> None:
    """Raise `InputError` where a local `name_or_path` is not a folder that holds a model with whole weights files."""
    folder = Path(name_or_path)
    looks_local = folder.exists() or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if not looks_local:
        return
    if not (folder / "config.json").is_file():
        raise InputError(f"{key}: '{name_or_path}' is not a model folder (it has no config.json)")
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{key}: '{name_or_path}' has no weights (*.safetensors)")
    for file in weights:
        try:
            safe_open(file, "pt").keys()
        except SafetensorError as error:
            raise InputError(f"{key}: '{file}' is damaged: {first_line(error)}") from error
