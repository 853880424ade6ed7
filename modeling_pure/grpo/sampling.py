"""Samples tokens, and keeps the set that each was sampled from as bits: DeepSeek-V3.2's keep-sampling mask.

Top-k, top-p and min-p truncate the vocabulary before a token is sampled, so that the sampling policy is not the
softmax that is trained. DeepSeek-V3.2 (arXiv 2512.02556, section 3.1) keeps the truncated set and normalises over it
in training. The set is stored, a bit per token, because it cannot be recomputed: in bf16, slightly different logits
give another set.
"""

import math
import random
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..options import check_above_zero, check_numbers, check_shares

# Allowed in `generation_kwargs`: options that exclude tokens but keep the odds between the others.
MASKING_OPTIONS = ("suppress_tokens", "min_new_tokens")


@dataclass(frozen=True)
class SamplingParams:
    """Settings of transformers' `generate`, applied in the same order."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    suppress_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        check_above_zero(self, "temperature", "top_p")
        check_shares(self, "top_p")
        check_numbers(self, top_k=0)
        if not 0 <= self.min_p < 1:
            raise InputError(f"min_p: expected a number from 0 to below 1, found {self.min_p}")

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are excluded."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def masks(self) -> bool:
        """Whether any tokens are excluded."""
        return self.truncates or bool(self.suppress_tokens) or self.min_new_tokens > 0


@dataclass
class SampledTokens:
    """One token for each row.

    Attributes:
        tokens: ids, shape (rows,).
        log_probs: their log-probabilities under the sampling policy, float32 of shape (rows,).
        kept: number of tokens that could have been sampled, shape (rows,).
        mask: these tokens as bits, uint8 of shape (rows, ceil(vocab / 8)); None = all tokens.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    kept: torch.Tensor
    mask: torch.Tensor | None


class TokenSampler:
    """Samples tokens from logits, without synchronising with the device, as CUDA graphs require."""

    def __init__(self, params: SamplingParams, eos_token_ids: list[int], device: torch.device) -> None:
        self.params = params
        self.suppressed = torch.tensor(params.suppress_tokens, dtype=torch.long, device=device)
        self.eos = torch.tensor(eos_token_ids, dtype=torch.long, device=device)

    def __call__(self, logits: torch.Tensor, step: torch.Tensor, uniform: torch.Tensor) -> SampledTokens:
        """Sample a token for each row.

        Args:
            logits: shape (rows, vocab).
            step: number of tokens sampled before, shape (1,).
            uniform: random numbers in [0, 1), float64 of shape (rows,).
        """
        ids, log_probs = self.candidates(logits, step)
        places = draw(log_probs, uniform)
        kept = log_probs > -torch.inf
        mask = None
        if self.params.masks:
            allowed = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            mask = pack_bits(allowed.scatter_(-1, ids, kept))
        return SampledTokens(
            ids.gather(-1, places)[:, 0], log_probs.gather(-1, places)[:, 0], kept.sum(-1, dtype=torch.int32), mask
        )

    def candidates(self, logits: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (rows, k) and their log-probabilities, -inf for excluded tokens.

        With `top_k` only k tokens are sorted; with `top_p` alone, the whole vocabulary.
        """
        params, logits = self.params, logits.float()
        if len(self.suppressed):
            logits = logits.index_fill(-1, self.suppressed, -torch.inf)
        if params.min_new_tokens:
            too_soon = torch.where(step < params.min_new_tokens, -torch.inf, 0.0)
            logits = logits.index_add(-1, self.eos, too_soon.expand(len(logits), len(self.eos)))
        scores = logits / params.temperature
        if params.top_k:
            scores, ids = scores.topk(min(params.top_k, scores.shape[-1]), dim=-1)
        elif params.top_p < 1:
            scores, ids = scores.sort(dim=-1, descending=True)
        else:
            ids = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        if params.top_p < 1:
            probs = scores.softmax(-1)
            scores = scores.masked_fill(probs.cumsum(-1) - probs >= params.top_p, -torch.inf)
        if params.min_p:
            log_probs = scores.log_softmax(-1)
            least = log_probs.amax(-1, keepdim=True) + math.log(params.min_p)
            scores = scores.masked_fill(log_probs < least, -torch.inf)
        return ids, scores.log_softmax(-1)


def uniform_numbers(key: str, rows: int, tokens: int) -> torch.Tensor:
    """Random numbers in [0, 1) to sample tokens with, float64 of shape (rows, tokens) on the CPU.

    They only depend on key and shape, so that each process can select those of its rows of the global batch.
    """
    generator = torch.Generator().manual_seed(random.Random(key).getrandbits(63))
    return torch.rand(rows, tokens, dtype=torch.float64, generator=generator)


def draw(log_probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Sample indices (rows, 1) from log-probabilities (rows, k) by inverting their cumulative distribution.

    This takes one random number per row; `torch.multinomial` takes one per token, 130 ms for 128 x 50,304 of them on
    two cores. A row's number does not depend on which other rows are left.
    """
    sums = log_probs.double().exp().cumsum(-1)
    # Neither rounding nor NaN may lead beyond the last possible token.
    places = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:] * (1 - 1e-12), right=True)
    return places.clamp(max=sums.shape[-1] - 1)


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Pack bool (..., n) into uint8 (..., ceil(n / 8)), the first flag in the lowest bit."""
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 8)).contiguous()
    # Eight flags are the bytes of one integer; the product collects their lowest bits in its highest byte.
    return (padded.view(torch.int64) * 0x0102040810204080 >> 56).to(torch.uint8)


def unpack_bits(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Unpack the bool mask (..., size) from `pack_bits`."""
    flags = torch.arange(256, device=packed.device)[:, None] >> torch.arange(8, device=packed.device) & 1
    eight_bytes = flags.to(torch.uint8).view(torch.int64)[:, 0]
    return eight_bytes[packed.int()].view(torch.bool)[..., :size]
