"""Muon for the matrices of the layers, AdamW for the embeddings: two optimizers that Trainer sees as one."""

from typing import Any

import torch
from transformers import TrainingArguments

from ..modeling_pure import PureForCausalLM


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on hidden weights and fused `torch.optim.AdamW` on all others, sharing state and schedule.

    Muon's update is scaled to the size of AdamW's (`match_rms_adamw`; Liu et al. 2025, arXiv 2502.16982), so that one
    learning rate and one weight decay serve both.

    If `found_inf` is set, a step changes nothing: AdamW's kernel reads the flag itself; torch's Muon has no such flag,
    so its momentum is fed back to itself and the weights are restored from a copy, all on the device.

    Args:
        hidden: 2D weights for Muon.
        others: all other weights.
    """

    def __init__(
        self,
        hidden: list[torch.nn.Parameter],
        others: list[torch.nn.Parameter],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.muon = torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True)
        self.found_inf: torch.Tensor | None = None
        self._step_supports_amp_scaling = True  # it reads `found_inf`
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Let both work on the groups and the state that are saved, loaded and scheduled."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both; returns what `closure` does."""
        self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]  # which its kernel looks for
        loss = self.adamw.step(closure)
        if self.found_inf is None:
            self.muon.step()
            return loss
        skip = self.found_inf.bool()
        weights = [weight for group in self.muon.param_groups for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            # lerp(buffer, gradient = buffer) leaves the buffer as it is, to the last bit.
            momentum = self.state[weight].get("momentum_buffer")
            weight.grad = torch.where(skip, 0.0 if momentum is None else momentum, weight.grad)
        before = [weight.clone() for weight in weights]
        self.muon.step()
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(torch.where(skip, old, weight))
        return loss


def muon_with_adamw(model: PureForCausalLM, args: TrainingArguments) -> MuonWithAdamW:
    """The optimizer of a run: Muon for all matrices of the decoder layers."""
    hidden = list(model.model.layers.parameters())
    others = [*model.model.embed_tokens.parameters(), *model.lm_head.parameters()]
    betas = (args.adam_beta1, args.adam_beta2)
    return MuonWithAdamW(hidden, others, args.learning_rate, args.weight_decay, betas, args.adam_epsilon)
