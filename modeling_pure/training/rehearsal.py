"""Trying what a run will need before it writes anything: the trainer is built, and an evaluation is run in small."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..errors import InputError, first_line

QUESTIONS = 2  # a process
REFUSALS = (ValueError, ImportError, NotImplementedError, HfHubHTTPError, OfflineModeIsEnabled)


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
    handler.callbacks = []
    trainer.log_completions = False  # TRL's
    trainer.questions = trainer.questions[: QUESTIONS * trainer.args.world_size]
    was_training = model.training
    try:
        with torch.random.fork_rng([trainer.args.device.index or 0] if trainer.args.device.type == "cuda" else []):
            yield
    finally:
        trainer.__dict__.update(kept)
        handler.callbacks, state.log_history = callbacks, history
        model.train(was_training)
        if forward is not None:
            model.forward = forward  # accelerate wraps one around it for an evaluation before training
        else:
            model.__dict__.pop("forward", None)
