"""The life of a run, which both phases share: its checks, its start, and what it leaves.

    with Run.open(args) as run:
        if not run.finished(recipe):
            trainer = ...
            run.start(trainer, recipe, title, facts)
            trainer.train(run.checkpoint)
            run.finish(trainer, ...)

What could stop it is tried before it writes anything: `rehearse` runs an evaluation in small.
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

QUESTIONS = 2  # of a process in a rehearsal
REFUSALS = (ValueError, ImportError, NotImplementedError, HfHubHTTPError, OfflineModeIsEnabled)


@dataclass(frozen=True)
class Run:
    """One start of a run, which has its folder to itself.

    Attributes:
        checkpoint: what it resumes from; None for a new run.
    """

    args: RunOptions
    checkpoint: Path | None

    @classmethod
    @contextmanager
    def open(cls, args: RunOptions) -> Iterator[Self]:
        """Lock the folder and find the checkpoint to resume from.

        Raises:
            InputError: the run may not be pushed, or its folder or checkpoint cannot be used.
        """
        with naming_lost_ranks(args), run_lock(args):
            check_hub(args)
            yield cls(args, find_checkpoint(args))

    def finished(self, recipe: Recipe) -> bool:
        """Whether nothing is left to train; a finished run is pushed.

        Raises:
            InputError: the checkpoint, or the finished run, was made with another recipe.
        """
        folder = Path(folder_of(self.args))
        step = finished_step(folder)
        if self.checkpoint:
            check_recipe(self.checkpoint, recipe, self.args.allow_recipe_change)
        if step is not None and (folder / CHECKPOINT_RECIPE).is_file():
            check_recipe(folder, recipe, self.args.allow_recipe_change)
        if step is None or step < self.args.max_steps:
            return False
        print(f"{folder}: finished before, at step {step}; raise max_steps to continue")
        if self.args.push_to_hub and not self.args.process_index:
            Publisher(self.args, create_repository(self.args)).finish()
        return True

    def start(self, trainer: DurableTrainer, recipe: Recipe, title: str, facts: dict[str, str]) -> None:
        """Print the start-up block, and write down the recipe and this launch; from here on log lines are short."""
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
            title: of the card.
            phase: what was done, its section.
            made_from: facts for the card, before the results.
            panels: of the curves.
        """
        trainer.save_model()
        if not trainer.is_world_process_zero():
            return
        folder = folder_of(self.args)
        facts = {phase: made_from | results}
        write_model_card(folder, title, trainer.model.config, facts, evaluations, base_model)
        write_curves(Path(folder), panels)
        print_block(f"{phase}: done", {**results, f"model, card, {CURVES_FILE}, {METRICS_FILE}": folder})
        trainer.save_state()  # last: it says that the folder holds all of the above
        if self.args.push_to_hub:
            trainer.push_to_hub()


def finished_step(folder: Path) -> int | None:
    """The last step of a run whose folder holds all that its end leaves; None for any other."""
    try:
        step: int = json.loads((folder / STATE_FILE).read_text())["global_step"]  # written last of all
    except (OSError, ValueError, KeyError):
        return None
    return step if any(folder.glob("*.safetensors")) else None


@contextmanager
def refusals_as_input_errors() -> Iterator[None]:
    """Report what a library refuses while a trainer is built as `InputError`."""
    try:
        yield
    except REFUSALS as error:
        raise InputError(first_line(error)) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):  # else it is no option's fault
            raise
        raise InputError(first_line(error)) from error


def rehearse(trainer: Any) -> None:
    """Run an evaluation on a few rows and questions, so that what would stop the first one stops the start instead.

    The run draws, logs and computes as if this had not happened. Sharded models are left out: their weights are not
    in place before training.

    Args:
        trainer: one with `questions`; its `eval_dataset` may be empty.

    Raises:
        InputError: evaluation does not give `metric_for_best_model`.
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
        raise InputError(f"metric_for_best_model: evaluation gives no '{wanted}'; it gives {measured}")


@contextmanager
def leaving_no_trace(trainer: Any) -> Iterator[None]:
    """Let an evaluation log and save nothing, ask a few questions only, and draw none of the run's random numbers."""
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
            model.forward = forward  # accelerate wraps one around it for an evaluation before training
        else:
            model.__dict__.pop("forward", None)
