"""`trl.GRPOTrainer` that counts the tokens it generates and stops at a budget, across processes and resumed runs."""

from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from ..training.checkpoint import callback_attributes, checkpoint_step, restore_finished


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


class PureGRPOTrainer(GRPOTrainer):
    """GRPO with a token budget. The refinements of DeepSeek-V3.2 are TRL's own, switched on in `PureGRPOConfig`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.token_budget = TokenBudget(self.args.max_tokens)
        self.add_callback(self.token_budget)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """Train; with a checkpoint, first take up its count of generated tokens."""
        if resume_from_checkpoint:
            attributes = callback_attributes(resume_from_checkpoint, TokenBudget.__name__)
            self.token_budget.generated_tokens = attributes["generated_tokens"]
            if self.token_budget.spent or checkpoint_step(Path(resume_from_checkpoint)) >= self.args.max_steps:
                return restore_finished(self, resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_model_card(self, *args, **kwargs) -> None:
        """Leave the card to the script: TRL's would replace ours, which says what the model is not for."""

    def _generate(self, prompts: list):
        output = super()._generate(prompts)
        if self.model.training:
            tokens = torch.tensor(sum(len(ids) for ids in output[1]), device=self.accelerator.device)
            self.token_budget.generated_tokens += int(self.accelerator.reduce(tokens, "sum"))
            self._metrics["train"]["generated_tokens"] = [self.token_budget.generated_tokens]
        return output
