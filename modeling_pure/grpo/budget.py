"""GRPO callbacks: a budget of generated tokens, and checkpoints deferred to the end of a rollout."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState


class TokenBudget(TrainerCallback, ExportableState):
    """Counts generated tokens over all processes, and stops the run at `max_tokens` (0 = never).

    The run still trains on the last rollout and evaluates the final weights.

    Args:
        rollout_done: whether the last rollout has been trained on completely.
    """

    def __init__(self, max_tokens: int, rollout_done: Callable[[], bool]) -> None:
        self.max_tokens, self.rollout_done = max_tokens, rollout_done
        self.generated_tokens = 0

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return 0 < self.max_tokens <= self.generated_tokens

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop after the last step on the rollout that used up the budget."""
        if self.spent and self.rollout_done():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint."""
        attributes = {"generated_tokens": self.generated_tokens, "inside_rollout": not self.rollout_done()}
        return {"args": {}, "attributes": attributes}


class SaveAfterRollout(TrainerCallback):
    """Defers a checkpoint inside a rollout, and its evaluation, to the rollout's end.

    A run resumed inside a rollout would sample for other prompts.
    """

    def __init__(self, rollout_done: Callable[[], bool]) -> None:
        self.rollout_done = rollout_done
        self.save_waits = self.evaluation_waits = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Defer or catch up; a run that ends inside a rollout saves there."""
        control.should_save |= self.save_waits
        control.should_evaluate |= self.evaluation_waits
        if self.rollout_done() or state.global_step >= state.max_steps or control.should_training_stop:
            self.save_waits = self.evaluation_waits = False
        elif control.should_save:
            self.save_waits, self.evaluation_waits = True, control.should_evaluate
            control.should_save = control.should_evaluate = False
        control.should_log |= control.should_save  # as for every checkpoint (`StopOnSignal`)
