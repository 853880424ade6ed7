"""The life cycle of a run, shared by both phases.

    with Run.open(args) as run:
        if not run.finished(recipe):
            trainer = ...
            run.start(trainer, recipe, title, facts)
            trainer.train(run.checkpoint)
            run.finish(trainer, ...)

Errors should appear before anything is written; so `rehearse` runs a small evaluation first.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import HubStrategy

from ..console import DISCLAIMER, print_block
from ..errors import InputError, first_line
from ..model_card import CardEvaluation, write_model_card
from ..recipe import Recipe
from .checkpoint import STATE_FILE, complete_step
from .curves import CURVES_FILE, Panel, write_curves
from .hub import PUSHED, Publisher, check_hub, create_repository, find_checkpoint
from .kernels import describe_attention
from .launch import describe_precision, describe_processes, naming_lost_ranks, run_lock
from .progress import LogLines
from .run_folder import (
    CHECKPOINT_RECIPE,
    METRICS_FILE,
    check_recipe,
    folder_of,
    note_launch,
    write_recipe,
)
from .saving import DurableTrainer
from .trainer_options import RunOptions

QUESTIONS = 2  # per process in a rehearsal
REFUSALS = (ValueError, ImportError, NotImplementedError, HfHubHTTPError, OfflineModeIsEnabled)


@dataclass(frozen=True)
class Run:
    """One launch of a run, with exclusive use of its folder.

    Attributes:
        checkpoint: the one to resume from; None for a new run.
    """

    args: RunOptions
    checkpoint: Path | None

    @classmethod
    @contextmanager
    def open(cls, args: RunOptions) -> Iterator[Self]:
        """Lock the folder, check the permission to push, and find the checkpoint to resume from."""
        with naming_lost_ranks(args), run_lock(args):
            check_hub(args)
            yield cls(args, find_checkpoint(args))

    def finished(self, recipe: Recipe) -> bool:
        """Whether nothing is left to train; if so, push the run again.

        Raises `InputError` if the checkpoint or the finished run has another recipe.
        """
        folder = Path(folder_of(self.args))
        step = finished_step(folder)
        if self.checkpoint:
            check_recipe(self.checkpoint, recipe, self.args.allow_recipe_change)
        if step is not None and (folder / CHECKPOINT_RECIPE).is_file():
            check_recipe(folder, recipe, self.args.allow_recipe_change)
        if step is None or step < self.args.max_steps:
            return False
        print(f"{folder}: already finished at step {step}; raise max_steps to continue")
        if self.args.push_to_hub and not self.args.process_index:
            Publisher(self.args, create_repository(self.args)).finish()
        return True

    def start(self, trainer: DurableTrainer, recipe: Recipe, title: str, facts: dict[str, str]) -> None:
        """Print the start-up block, and record the recipe and this launch; from here on log lines are short."""
        trainer.recipe = recipe.resolved
        for kind in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(kind)
        trainer.add_callback(LogLines)
        if not trainer.is_world_process_zero():
            return
        compiled = ", layers compiled" if getattr(self.args, "compile_layers", False) else ""
        hub = {}
        if self.args.push_to_hub:
            hub = {"Hub": f"{self.args.hub_model_id}: {PUSHED[HubStrategy(self.args.hub_strategy)]}"}
        common = {
            "precision": describe_precision(trainer.accelerator) + compiled,
            "attention": describe_attention(trainer.model, self.args.device, bool(self.args.bf16)),
            "device": describe_processes(self.args, trainer.accelerator),
            "run folder": folder_of(self.args),
            **hub,
            "begins": f"from {self.checkpoint}" if self.checkpoint else "at step 0",
            "note": DISCLAIMER,
        }
        print_block(title, facts | common)
        folder = Path(folder_of(self.args))
        folder.mkdir(parents=True, exist_ok=True)
        write_recipe(folder, recipe)
        step = complete_step(self.checkpoint) if self.checkpoint else 0
        note_launch(folder, step, self.args.world_size, self.args.device)

    def finish(
        self,
        trainer: DurableTrainer,
        title: str,
        phase: str,
        made_from: dict[str, str],
        results: dict[str, str],
        evaluations: list[CardEvaluation],
        panels: list[Panel],
        base_model: str | None = None,
    ) -> None:
        """Save the model with its card and curves, print the results, and push the folder.

        Args:
            title: title of the card.
            phase: title of the card's section.
            made_from: facts that the card states before the results.
            panels: what `curves.png` shows.
        """
        trainer.save_model()
        if not trainer.is_world_process_zero():
            return
        folder = folder_of(self.args)
        facts = {phase: made_from | results}
        write_model_card(folder, title, trainer.model.config, facts, evaluations, base_model)
        write_curves(Path(folder), panels)
        print_block(f"{phase}: done", {**results, f"model, card, {CURVES_FILE}, {METRICS_FILE}": folder})
        trainer.save_state()  # last: it marks the run as finished
        if self.args.push_to_hub:
            trainer.push_to_hub()


def finished_step(folder: Path) -> int | None:
    """The last step of a finished run; None for any other."""
    try:
        step: int = json.loads((folder / STATE_FILE).read_text())["global_step"]  # written last
    except (OSError, ValueError, KeyError):
        return None
    return step if any(folder.glob("*.safetensors")) else None


@contextmanager
def refusals_as_input_errors() -> Iterator[None]:
    """Turn library errors from building a trainer into `InputError`."""
    try:
        yield
    except REFUSALS as error:
        raise InputError(first_line(error)) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):  # not caused by an option
            raise
        raise InputError(first_line(error)) from error


def rehearse(trainer: Any) -> None:
    """Evaluate a few rows and questions, so that an evaluation that would fail stops the run at its start.

    The run's random numbers and logs stay as they were. Sharded models are skipped: their weights are not in place
    before training.

    Args:
        trainer: a trainer with `questions`; its `eval_dataset` may be empty.

    Raises:
        InputError: evaluation does not return `metric_for_best_model`.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not trainer.eval_dataset:
        return
    with leaving_no_trace(trainer), torch.compiler.set_stance("force_eager"):
        metrics = trainer.evaluate(eval_dataset=trainer.few_rows())
    wanted = trainer.args.metric_for_best_model
    if trainer.args.eval_strategy == "no" or wanted is None:
        return
    if f"eval_{wanted.removeprefix('eval_')}" not in metrics:
        measured = ", ".join(name for name, value in metrics.items() if isinstance(value, float | int))
        raise InputError(f"metric_for_best_model: evaluation returns no '{wanted}', only {measured}")


@contextmanager
def leaving_no_trace(trainer: Any) -> Iterator[None]:
    """Evaluate without logging, saving or advancing the run's random numbers, and on a few questions only."""
    model, handler, state = trainer.model, trainer.callback_handler, trainer.state
    kept = {name: trainer.__dict__[name] for name in ("questions", "log_completions") if name in trainer.__dict__}
    kept |= {name: copy.deepcopy(trainer.__dict__[name]) for name in ("_metrics", "_logs") if name in trainer.__dict__}
    callbacks, history, forward = handler.callbacks, list(state.log_history), model.__dict__.get("forward")
    trackers = trainer.args.report_to
    handler.callbacks, trainer.args.report_to = [], []  # TRL times its functions for trackers without a callback
    trainer.log_completions = False  # TRL's
    trainer.questions = trainer.questions[: QUESTIONS * trainer.args.world_size]
    was_training = model.training
    try:
        with torch.random.fork_rng([trainer.args.device.index or 0] if trainer.args.device.type == "cuda" else []):
            yield
    finally:
        trainer.__dict__.update(kept)
        handler.callbacks, state.log_history = callbacks, history
        trainer.args.report_to = trackers
        model.train(was_training)
        if forward is not None:
            model.forward = forward  # for an evaluation before training, accelerate wraps it
        else:
            model.__dict__.pop("forward", None)
