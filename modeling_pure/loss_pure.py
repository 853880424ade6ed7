"""The loss of a language-model head without its logits: 16 rows of 2,048 tokens would make 6.6 GB of them in float32.

Pushed to the Hub beside the model, so it imports torch and transformers only.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

CHUNK_TOKENS = 4096  # 0.8 GB of float32 logits at 50,304 words


class PureTokenLoss(nn.Module):
    """Cross entropy of each token together with its gradient, from which no backward pass has to be made.

    A module without weights, so that it can be compiled in place as the decoder layers can.
    """

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (tokens, vocab) and labels (tokens,), -100 for none, to nats (tokens,) and the mean's gradient.

        The gradient, of the shape and dtype of the logits, is (softmax(logits) - one_hot(label)) / num_items.
        """
        scores, counted = logits.float(), (labels != -100)[:, None]
        labels = labels.clamp(min=0)[:, None]
        log_sums = scores.logsumexp(dim=-1, keepdim=True)
        nats = torch.where(counted, log_sums - scores.gather(1, labels), 0.0)
        one_hot = torch.arange(scores.shape[1], device=scores.device) == labels
        gradient = ((scores - log_sums).exp() - one_hot.to(scores.dtype)) / num_items
        return nats[:, 0], torch.where(counted, gradient, 0.0).to(logits.dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The loss from hidden states, a chunk of tokens at a time: never all logits at once, in no pass.

    The gradients are made in the forward pass, where the logits are, so that the head runs once. Sums are in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        num_items: torch.Tensor | int,
        token_loss: PureTokenLoss,
    ) -> torch.Tensor:
        """Hidden states (tokens, hidden), head weight (vocab, hidden), labels (tokens,): sum of nats / `num_items`."""
        dtype, learns_head = compute_dtype(hidden_states), ctx.needs_input_grad[1]
        with torch.autocast(hidden_states.device.type, enabled=False):
            head = weight.to(dtype)
            loss = torch.zeros((), device=hidden_states.device)
            grad_hidden = torch.empty_like(hidden_states)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learns_head else None
            for chunk in range(0, len(labels), CHUNK_TOKENS):
                tokens = slice(chunk, chunk + CHUNK_TOKENS)
                hidden = hidden_states[tokens].to(dtype)
                nats, gradient = token_loss(hidden @ head.t(), labels[tokens], num_items)
                loss = loss + nats.sum() / num_items  # in place, torch 2.11 compiles it to gradients of zero
                grad_hidden[tokens] = gradient @ head
                if grad_weight is not None:
                    grad_weight += gradient.t() @ hidden
                del gradient  # or it would be there beside the logits of the next chunk
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the forward pass, scaled."""
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_weight = None if grad_weight is None else grad_weight * grad_loss
        return grad_hidden * grad_loss, grad_weight, None, None, None


def chunked_nats(hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of each label (tokens,), float32, 0 where it is -100; with no gradient and never all logits at once."""
    head = weight.to(compute_dtype(hidden_states))
    chunks = zip(*(x.split(CHUNK_TOKENS) for x in (hidden_states, labels)), strict=True)
    with torch.no_grad(), torch.autocast(hidden_states.device.type, enabled=False):
        return torch.cat(
            [F.cross_entropy((h.to(head.dtype) @ head.t()).float(), y, reduction="none") for h, y in chunks]
        )


def head_weight(head: nn.Module) -> torch.Tensor | None:
    """The weight of a head that computes its product alone; adapters and tensor parallelism add to it, giving None."""
    plain = isinstance(head, nn.Linear) and type(head.weight) in (nn.Parameter, torch.Tensor)
    return head.weight if plain else None  # type: ignore[return-value]


def hidden_states_loss(
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    token_loss: PureTokenLoss,
    reduction: str,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> torch.Tensor:
    """The loss that transformers takes from logits, without them.

    Args:
        hidden_states: shape (batch, length, hidden).
        labels: shape (batch, length), shifted here; with `shift_labels`, which are shifted already, not read.
        weight: of the head, shape (vocab, hidden).
        reduction: "mean", over `num_items_in_batch` where it is given, or "none" for nats (batch, length).
    """
    next_tokens = F.pad(labels, (0, 1), value=ignore_index)[:, 1:] if shift_labels is None else shift_labels
    next_tokens = next_tokens.masked_fill(next_tokens == ignore_index, -100).to(hidden_states.device)
    tokens, targets = hidden_states.flatten(0, 1), next_tokens.flatten()
    if reduction == "none":
        return chunked_nats(tokens, weight, targets).view_as(next_tokens)
    num_items = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
    loss: torch.Tensor = ChunkedCrossEntropy.apply(tokens, weight, targets, num_items, token_loss)
    return loss


class LossWithoutLogits(CausalLMOutputWithPast):
    """Output of a forward pass without logits. Accessing `logits` raises an error that explains how to get them."""

    @property
    def logits(self) -> torch.Tensor | None:
        """Raise `AttributeError`."""
        raise AttributeError(
            "This forward pass made no logits: in training, labels give the loss alone. Pass skip_logits=False to "
            "the model to have logits as well."
        )

    @logits.setter
    def logits(self, logits: torch.Tensor | None) -> None:
        """Accept the field's default."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self.get(field.name) for field in fields(CausalLMOutputWithPast))


# FSDP2 reads every field of an output.
LossWithoutLogits.__dataclass_fields__ = {
    field.name: field for field in fields(CausalLMOutputWithPast) if field.name != "logits"
}


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """The dtype that matrix products take: autocast's where it is on, else that of `states`."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
