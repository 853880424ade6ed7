"""Callbacks of GRPO: a budget of generated tokens, and checkpoints that wait for a rollout's end."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class TokenBudget(TrainerCallback, ExportableState):
    """Counts generated tokens over all processes, and stops the run at `max_tokens` (0 = never).

    The rollout in which the budget is reached is still trained on, and the last weights are evaluated.

    Args:
        rollout_done: whether all of the last rollout has been trained on.
    """

    def __init__(self, max_tokens: int, rollout_done: Callable[[], bool] = lambda: True) -> None:
        self.max_tokens, self.rollout_done = max_tokens, rollout_done
        self.generated_tokens = 0

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return 0 < self.max_tokens <= self.generated_tokens

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop after the last step on the rollout in which the budget was reached."""
        if self.spent and self.rollout_done():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"

    def state(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {
            "args": {"max_tokens": self.max_tokens},
            "attributes": {"generated_tokens": self.generated_tokens, "inside_rollout": not self.rollout_done()},
        }


class SaveAfterRollout(TrainerCallback):
    """Defers a checkpoint inside a rollout, and its evaluation, to the rollout's end.

    A run resumed inside a rollout would sample other prompts.

    Args:
        rollout_done: whether all of the last rollout has been trained on.
    """

    def __init__(self, rollout_done: Callable[[], bool]) -> None:
        self.rollout_done = rollout_done
        self.save_waits = self.evaluation_waits = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Defer what is due, or catch up on it; a run that ends inside a rollout saves there."""
        control.should_save |= self.save_waits
        control.should_evaluate |= self.evaluation_waits
        if self.rollout_done() or state.global_step >= state.max_steps or control.should_training_stop:
            self.save_waits = self.evaluation_waits = False
        elif control.should_save:
            self.save_waits, self.evaluation_waits = True, control.should_evaluate
            control.should_save = control.should_evaluate = False
        control.should_log |= control.should_save  # as for every checkpoint (`StopOnSignal`)
