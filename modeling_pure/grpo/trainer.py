"""`trl.GRPOTrainer` that counts the tokens it generates and stops at a budget, across processes and resumed runs."""

from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from ..training.checkpoint import callback_attributes
from ..training.saving import DurableTrainer


class TokenBudget(TrainerCallback, ExportableState):
    """Counts generated tokens over all processes and stops the run at `max_tokens` (0 = never)."""

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.generated_tokens = 0

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return 0 < self.max_tokens <= self.generated_tokens

    def on_step_end(self, args, state, control, **kwargs):
        """Stop after the step in which the budget was reached, with a checkpoint."""
        if self.spent:
            control.should_save = control.should_training_stop = True

    def state(self) -> dict:
        """What goes into the checkpoint."""
        return {"args": {"max_tokens": self.max_tokens}, "attributes": {"generated_tokens": self.generated_tokens}}


class PureGRPOTrainer(DurableTrainer, GRPOTrainer):
    """GRPO with a token budget. The refinements of DeepSeek-V3.2 are TRL's own, switched on in `PureGRPOConfig`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A run that goes on inside a rollout would sample other prompts.
        self.stop_on_signal.steps_between_stops = int(self.args.updates_per_rollout)
        self.token_budget = TokenBudget(self.args.max_tokens)
        self.add_callback(self.token_budget)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """Train; with a checkpoint, first take up its count of generated tokens."""
        if resume_from_checkpoint:
            attributes = callback_attributes(resume_from_checkpoint, TokenBudget.__name__)
            self.token_budget.generated_tokens = attributes["generated_tokens"]
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def has_finished(self, checkpoint: Path) -> bool:
        """Whether the budget is spent, or the checkpoint is that of the last step."""
        return self.token_budget.spent or super().has_finished(checkpoint)

    def _generate(self, prompts: list):
        output = super()._generate(prompts)
        if self.model.training:
            tokens = torch.tensor(sum(len(ids) for ids in output[1]), device=self.accelerator.device)
            self.token_budget.generated_tokens += int(self.accelerator.reduce(tokens, "sum"))
            self._metrics["train"]["generated_tokens"] = [self.token_budget.generated_tokens]
        return output
