"""A budget of generated tokens."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class TokenBudget(TrainerCallback, ExportableState):
    """Counts generated tokens over all processes, and stops the run at `max_tokens` (0 = never).

    The rollout in which the budget is reached is still trained on, so that no token was generated for nothing, and the
    last weights are evaluated.
    """

    def __init__(self, max_tokens: int, updates_per_rollout: int) -> None:
        self.max_tokens = max_tokens
        self.updates_per_rollout = updates_per_rollout
        self.generated_tokens = 0

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return 0 < self.max_tokens <= self.generated_tokens

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after the last step on the rollout in which the budget was reached, with a checkpoint."""
        if self.spent and state.global_step % self.updates_per_rollout == 0:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"

    def state(self) -> dict[str, Any]:
        """What goes into the checkpoint."""
        return {
            "args": {"max_tokens": self.max_tokens, "updates_per_rollout": self.updates_per_rollout},
            "attributes": {"generated_tokens": self.generated_tokens},
        }
