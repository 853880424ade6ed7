"""Log-probabilities of given tokens from hidden states, over a keep-sampling mask, a chunk of logits at a time.

    log p(y) = z_y / T - log sum over kept w of exp(z_w / T),      z = W h + b

The sum runs over the keep-sampling mask (DeepSeek-V3.2, arXiv 2512.02556, section 3.1), so that only the kept rows of
W have a gradient.
"""

from typing import Any

import torch
from torch import nn

from .sampling import unpack_bits

CHUNK_TOKENS = 2048  # 0.4 GB of float32 logits at a vocabulary of 50,304, and as much for their exponentials
FLOAT_MIN = torch.finfo(torch.float32).min  # instead of -inf, whose product with a probability of 0 is NaN


def head_logits(head: nn.Linear, hidden_states: torch.Tensor, fp32: bool) -> torch.Tensor:
    """Float32 logits (..., vocab) from hidden states (..., hidden); `fp32` also computes them in float32."""
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
    """Log-probability of each token and the entropy of its distribution, both in nats.

    Args:
        hidden_states: those that predict the tokens, shape (tokens, hidden).
        tokens: ids of shape (tokens,).
        sampling_mask: bits (`sampling.pack_bits`) of shape (tokens, ceil(vocab / 8)); None = all tokens.
        fp32: compute the logits in float32 even under autocast.

    Returns:
        two float32 tensors of shape (tokens,), differentiable in hidden states, weight and bias.
    """
    dtype = torch.float32 if fp32 else hidden_states.dtype
    return MaskedTokenLogProbs.apply(
        hidden_states.to(dtype), head.weight, head.bias, tokens, sampling_mask, temperature
    )


class MaskedTokenLogProbs(torch.autograd.Function):
    """Processes a chunk of tokens at a time; the backward pass recomputes all chunks but the last."""

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
        """Log-probabilities and entropies of the tokens, float32 of shape (tokens,)."""
        inputs = hidden_states, weight, bias, sampling_mask
        log_probs = torch.empty(len(tokens), device=hidden_states.device)
        entropies = torch.empty_like(log_probs)
        with torch.autocast(hidden_states.device.type, enabled=False):
            for chunk in chunks(len(tokens)):
                scores = kept_scores(*inputs, temperature, chunk)
                weights = scores.exp()  # unnormalised probabilities
                sums = weights.sum(-1)
                log_probs[chunk] = scores.gather(-1, tokens[chunk, None])[:, 0] - sums.log()
                entropies[chunk] = sums.log() - torch.linalg.vecdot(weights, scores) / sums
                del scores
                ctx.last = chunk, weights, sums
        ctx.save_for_backward(*inputs, tokens, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return log_probs, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_log_probs: torch.Tensor | None, grad_entropies: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the hidden states, the head's weight and its bias."""
        hidden_states, weight, bias, sampling_mask, tokens, entropies = ctx.saved_tensors
        inputs = hidden_states, weight, bias, sampling_mask
        dtype = hidden_states.dtype
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(entropies)
        grad_log_probs = grad_log_probs / ctx.temperature
        grad_hidden = torch.empty_like(hidden_states)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        with torch.autocast(hidden_states.device.type, enabled=False):
            for chunk in reversed(chunks(len(tokens))):
                kept, weights, sums = ctx.last
                if kept != chunk:
                    weights = kept_scores(*inputs, ctx.temperature, chunk).exp_()
                    sums = weights.sum(-1)
                ctx.last = None, None, None  # one chunk at a time
                # d log p(y) / dz_w = [w = y] - p_w,   dH / dz_w = -p_w (log p_w + H)
                factors = grad_log_probs[chunk, None]
                if grad_entropies is not None:
                    log_probs = (weights / sums[:, None]).clamp_(min=torch.finfo(torch.float32).tiny).log_()
                    surprise = log_probs.add_(entropies[chunk, None])
                    factors = factors + surprise.mul_(grad_entropies[chunk, None] / ctx.temperature)
                grad_scores = weights.mul_(-factors / sums[:, None])
                grad_scores.scatter_add_(-1, tokens[chunk, None], grad_log_probs[chunk, None])
                grad_scores = grad_scores.to(dtype)
                grad_hidden[chunk] = grad_scores @ weight.to(dtype)
                if grad_weight is not None:
                    grad_weight += grad_scores.t() @ hidden_states[chunk]
                if grad_bias is not None:
                    grad_bias += grad_scores.sum(0)
        grads = [grad if grad is None else grad.to(weight.dtype) for grad in (grad_weight, grad_bias)]
        return grad_hidden, *grads, None, None, None


def chunks(tokens: int) -> list[slice]:
    """Slices of at most `CHUNK_TOKENS` that cover the tokens."""
    return [slice(start, min(start + CHUNK_TOKENS, tokens)) for start in range(0, tokens, CHUNK_TOKENS)]


def kept_scores(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    sampling_mask: torch.Tensor | None,
    temperature: float,
    chunk: slice,
) -> torch.Tensor:
    """A chunk's scores z / T minus their maximum, float32 (chunk, vocab); `FLOAT_MIN` for tokens not kept."""
    hidden = hidden_states[chunk]
    logits = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
    scores = logits.float()
    if temperature != 1:
        scores.div_(temperature)
    if sampling_mask is not None:
        cut_off = unpack_bits(~sampling_mask[chunk], scores.shape[-1])
        scores.masked_fill_(cut_off, FLOAT_MIN)
    return scores.sub_(scores.amax(-1, keepdim=True))
