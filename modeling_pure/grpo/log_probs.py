"""Log-probabilities of given tokens from hidden states, over the tokens that could be drawn, never all logits at once.

    log p(y) = z_y / T - log sum over kept w of exp(z_w / T),      z = W h + b

The sum runs over the keep-sampling mask (DeepSeek-V3.2, arXiv 2512.02556, section 3.1), so only the rows of W that
were kept have a gradient.
"""

from typing import Any

import torch
from torch import nn

from .sampling import unpack_bits

CHUNK_TOKENS = 1024  # 0.2 GB of float32 logits at 50,304 words
FLOAT_MIN = torch.finfo(torch.float32).min  # in place of -inf, which times a probability of 0 is no number


def head_logits(head: nn.Linear, hidden_states: torch.Tensor, fp32: bool) -> torch.Tensor:
    """Hidden states (..., hidden) to logits (..., vocab) in float32, computed in it too where `fp32` says so."""
    with torch.autocast(hidden_states.device.type, enabled=False):
        dtype = torch.float32 if fp32 else hidden_states.dtype
        bias = None if head.bias is None else head.bias.to(dtype)
        return nn.functional.linear(hidden_states.to(dtype), head.weight.to(dtype), bias).float()


def token_log_probs(
    head: nn.Linear,
    hidden_states: torch.Tensor,
    tokens: torch.Tensor,
    sampling_mask: torch.Tensor | None,
    temperature: float,
    fp32: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token and the entropy of what it was drawn from, both in nats.

    Args:
        hidden_states: where the tokens are predicted, shape (tokens, hidden).
        tokens: their ids, shape (tokens,).
        sampling_mask: bits (`sampling.pack_bits`) of shape (tokens, ceil(vocab / 8)), on any device; None = all.
        fp32: compute the logits in float32, whatever autocast says.

    Returns:
        two float32 tensors of shape (tokens,), differentiable in hidden states, weight and bias.
    """
    dtype = torch.float32 if fp32 else hidden_states.dtype
    return MaskedTokenLogProbs.apply(
        hidden_states.to(dtype), head.weight, head.bias, tokens, sampling_mask, temperature
    )


class MaskedTokenLogProbs(torch.autograd.Function):
    """A chunk of tokens at a time. The probabilities of the last chunk are kept for the backward pass, which computes
    those of the others again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tokens: torch.Tensor,
        sampling_mask: torch.Tensor | None,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = hidden_states, weight, bias, tokens, sampling_mask
        ctx.save_for_backward(*inputs)
        ctx.temperature = temperature
        log_probs = torch.empty(len(tokens), device=hidden_states.device)
        entropies = torch.empty_like(log_probs)
        with torch.autocast(hidden_states.device.type, enabled=False):
            for chunk in chunks(len(tokens)):
                scores = kept_scores(*inputs, temperature, chunk)
                log_sums = scores.logsumexp(-1, keepdim=True)
                log_probs[chunk] = (scores.gather(-1, tokens[chunk, None]) - log_sums)[:, 0]
                probs = (scores - log_sums).exp_()
                entropies[chunk] = log_sums[:, 0] - scores.mul_(probs).sum(-1)
                ctx.kept = chunk, probs
        ctx.entropies = entropies
        ctx.set_materialize_grads(False)
        return log_probs, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_log_probs: torch.Tensor | None, grad_entropies: torch.Tensor | None):
        hidden_states, weight, bias, tokens, _ = inputs = ctx.saved_tensors
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(ctx.entropies)
        grad_hidden = torch.empty_like(hidden_states)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        with torch.autocast(hidden_states.device.type, enabled=False):
            for chunk in reversed(chunks(len(tokens))):
                kept, probs = ctx.kept
                if kept != chunk:
                    probs = kept_scores(*inputs, ctx.temperature, chunk).softmax(-1)
                ctx.kept = None, None  # one chunk at a time
                # d log p(y) / dz_w = [w = y] - p_w,   dH / dz_w = -p_w (log p_w + H)
                if grad_entropies is not None:
                    surprise = probs.clamp(min=torch.finfo(probs.dtype).tiny).log() + ctx.entropies[chunk, None]
                    factor = grad_log_probs[chunk, None] + grad_entropies[chunk, None] * surprise
                else:
                    factor = grad_log_probs[chunk, None]
                grad_scores = probs.mul_(-factor)
                grad_scores.scatter_add_(-1, tokens[chunk, None], grad_log_probs[chunk, None])
                grad_scores = (grad_scores / ctx.temperature).to(hidden_states.dtype)
                grad_hidden[chunk] = grad_scores @ weight.to(hidden_states.dtype)
                if grad_weight is not None:
                    grad_weight += grad_scores.t() @ hidden_states[chunk]
                if grad_bias is not None:
                    grad_bias += grad_scores.sum(0)
        grads = [grad if grad is None else grad.to(weight.dtype) for grad in (grad_weight, grad_bias)]
        return grad_hidden, *grads, None, None, None


def chunks(tokens: int) -> list[slice]:
    """So many tokens in pieces of `CHUNK_TOKENS`."""
    return [slice(start, min(start + CHUNK_TOKENS, tokens)) for start in range(0, tokens, CHUNK_TOKENS)]


def kept_scores(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    sampling_mask: torch.Tensor | None,
    temperature: float,
    chunk: slice,
) -> torch.Tensor:
    """z / T of a chunk, float32 of shape (chunk, vocab), as good as -inf for what could not be drawn."""
    hidden = hidden_states[chunk]
    logits = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
    scores = logits.float().div_(temperature)
    if sampling_mask is not None:
        kept = unpack_bits(sampling_mask[chunk].to(scores.device), scores.shape[-1])
        scores.masked_fill_(~kept, FLOAT_MIN)
    return scores
