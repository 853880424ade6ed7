"""The loss of a language-model head without its logits, which take 6.6 GB in float32 for 16 x 2,048 tokens.

Pushed to the Hub as remote code, so it imports only torch and transformers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.utils import TransformersKwargs

CHUNK_TOKENS = 4096  # 0.8 GB of float32 logits for 50,304 tokens
LOSS_KEYWORDS = {"shift_labels", *TransformersKwargs.__annotations__}  # understood here, or unrelated to losses


class PureTokenLoss(nn.Module):
    """Cross entropy of each token together with its gradient, so that it needs no backward pass.

    A module without weights, so that it can be compiled in place like the decoder layers.
    """

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss per token in nats (tokens,), and the gradient of the mean with respect to logits (tokens, vocab).

        Labels (tokens,) of -100 are ignored. The gradient (softmax(logits) - one_hot(label)) / num_items has the shape
        and dtype of the logits.
        """
        scores, counted = logits.float(), (labels != -100)[:, None]
        labels = labels.masked_fill(labels == -100, 0)[:, None]  # other out-of-range labels raise
        log_sums = scores.logsumexp(dim=-1, keepdim=True)
        nats = torch.where(counted, log_sums - scores.gather(1, labels), 0.0)
        one_hot = torch.arange(scores.shape[1], device=scores.device) == labels
        gradient = ((scores - log_sums).exp() - one_hot.to(scores.dtype)) / num_items
        return nats[:, 0], torch.where(counted, gradient, 0.0).to(logits.dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The loss from hidden states, in chunks of tokens, so that all logits are never in memory together.

    The forward pass also computes the gradients, so that the head runs once. Sums are in float32.
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
                loss = loss + nats.sum() / num_items  # in-place addition compiles to zero gradients in torch 2.11
                grad_hidden[tokens] = gradient @ head
                if grad_weight is not None:
                    grad_weight += gradient.t() @ hidden
                del gradient  # frees memory for the logits of the next chunk
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, hidden_states, weight, labels)
        ctx.num_items, ctx.dtype = num_items, dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the forward pass, scaled; double backward recomputes them from logits."""
        grad_hidden, grad_weight, *inputs, labels = ctx.saved_tensors
        if torch.is_grad_enabled():
            hidden, head = (states.to(ctx.dtype) for states in inputs)
            loss = F.cross_entropy((hidden @ head.t()).float(), labels, reduction="sum") / ctx.num_items
            learned = [states for states in inputs if states.requires_grad]
            gradients = iter(torch.autograd.grad(loss, learned, grad_loss, create_graph=True))
            return *(next(gradients) if states.requires_grad else None for states in inputs), None, None, None
        grad_weight = None if grad_weight is None else grad_weight * grad_loss
        return grad_hidden * grad_loss, grad_weight, None, None, None


def is_plain_head(head: nn.Linear, states: torch.Tensor) -> bool:
    """Whether logits are hidden states times the head's weight and nothing else, so that the head need not be called.

    Adapters, quantisers and parametrisations change the class of the head or of its weight; pruning, old spectral
    norms and accelerate's offloading add hooks or replace `forward`. Also False under `torch.func`, which must trace
    the loss, and in float16, where gradients of single logits underflow.
    """
    if type(head) is not nn.Linear or "forward" in vars(head) or torch._C._are_functorch_transforms_active():
        return False
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    if any(hooks) or _has_any_global_hook() or head.bias is not None:
        return False
    if type(head.weight) not in (nn.Parameter, torch.Tensor):
        return False
    dtype = compute_dtype(states)
    same_dtype = head.weight.dtype == states.dtype or torch.is_autocast_enabled(states.device.type)
    return head.weight.device == states.device and same_dtype and dtype != torch.float16


def next_tokens(labels: torch.Tensor, shift_labels: torch.Tensor | None, ignore_index: int = -100) -> torch.Tensor:
    """Labels (batch, length) shifted left by one; `shift_labels`, if given, are returned as they are."""
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:] if shift_labels is None else shift_labels


@torch.no_grad()
def token_nats(
    head: nn.Module,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> torch.Tensor:
    """Nats of each label, float32 (batch, length), 0 for `ignore_index`; computed in chunks of tokens."""
    targets = next_tokens(labels, shift_labels, ignore_index).to(hidden_states.device)
    chunks = zip(*(x.split(CHUNK_TOKENS) for x in (hidden_states.flatten(0, 1), targets.flatten())), strict=True)
    nats = [F.cross_entropy(head(h).float(), y, ignore_index=ignore_index, reduction="none") for h, y in chunks]
    return torch.cat(nats).view_as(targets)


def hidden_states_loss(
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    token_loss: PureTokenLoss,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """The same loss as transformers' causal-LM loss, without materializing the logits.

    Args:
        hidden_states: shape (batch, length, hidden).
        labels: shape (batch, length), -100 for none; shifted here, and unused with `shift_labels`.
        weight: of the head, shape (vocab, hidden).
        num_items_in_batch: divisor of the sum; by default the number of labels in this batch.
    """
    targets = next_tokens(labels, shift_labels).flatten().to(hidden_states.device)
    items = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
    items = items.to(hidden_states.device) if isinstance(items, torch.Tensor) else items
    loss: torch.Tensor = ChunkedCrossEntropy.apply(hidden_states.flatten(0, 1), weight, targets, items, token_loss)
    return loss


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's if it is enabled, else that of `states`."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
