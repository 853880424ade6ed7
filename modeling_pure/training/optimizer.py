"""Muon for the matrices of the layers and AdamW for the embeddings, as one optimizer."""

from typing import Any

import torch
from transformers import TrainingArguments

from ..modeling_pure import PureForCausalLM


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on `hidden`, 2D weights, and fused `torch.optim.AdamW` on `others`.

    Muon's update is scaled to the size of AdamW's (`match_rms_adamw`; Liu et al. 2025, arXiv 2502.16982), so that one
    learning rate and one weight decay suit both.

    If `found_inf` is set, a step changes nothing. AdamW's kernel reads the flag. torch's Muon does not, so its own
    momentum replaces the gradient and the weights are restored from a copy, all on the device.
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
        self._step_supports_amp_scaling = True  # reads `found_inf`
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Make both optimizers use the parameter groups and state of this one."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step with both optimizers; returns the result of `closure`."""
        self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]  # an attribute that its kernel looks for
        loss = self.adamw.step(closure)
        if self.found_inf is None:
            self.muon.step()
            return loss
        skip = self.found_inf.bool()
        weights = [weight for group in self.muon.param_groups for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            # lerp(buffer, gradient) with gradient = buffer leaves the buffer unchanged, bit for bit.
            momentum = self.state[weight].get("momentum_buffer")
            weight.grad = torch.where(skip, 0.0 if momentum is None else momentum, weight.grad)
        before = [weight.clone() for weight in weights]
        self.muon.step()
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(torch.where(skip, old, weight))
        return loss


def muon_with_adamw(model: PureForCausalLM, args: TrainingArguments) -> MuonWithAdamW:
    """A run's optimizer: Muon for all matrices of the decoder layers, AdamW for the rest."""
    hidden = list(model.model.layers.parameters())
    others = [*model.model.embed_tokens.parameters(), *model.lm_head.parameters()]
    betas = (args.adam_beta1, args.adam_beta2)
    return MuonWithAdamW(hidden, others, args.learning_rate, args.weight_decay, betas, args.adam_epsilon)
