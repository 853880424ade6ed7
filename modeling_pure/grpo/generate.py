"""The same rollout by transformers' `generate`, for models whose attention cannot be taken over (`shared_prefix`).

Slower: every completion runs its prompt itself, and finished ones stay in the batch.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from .rollout import Rollout, gather_rollout
from .sampling import SampledTokens, SamplingParams, TokenSampler


class DrawTokens(LogitsProcessor):
    """Draws each token itself and leaves it to `generate` as the only possible one.

    Args:
        uniform: a number from 0 up to 1 for each token, float64 of shape (rows, longest completion).
    """

    def __init__(self, sampler: TokenSampler, uniform: torch.Tensor) -> None:
        self.sampler, self.uniform = sampler, uniform
        self.drawn: list[SampledTokens] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, vocab) of 0 for the token that was drawn, -inf elsewhere."""
        step = len(self.drawn)
        drawn = self.sampler(scores, torch.tensor([step], device=scores.device), self.uniform[:, step])
        self.drawn.append(drawn)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn.tokens[:, None], 0.0)


@torch.no_grad()
def generate_completions(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    params: SamplingParams,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    fp32_head: bool = True,
    uniform: torch.Tensor | None = None,
) -> Rollout:
    """`rollout.sample_completions`, which draws the same tokens.

    `fp32_head` is left to the model, whose head TRL has cast; not where it is tied, which under bf16 is then rounded.
    """
    if uniform is None:
        uniform = torch.rand(len(prompt_ids), max_new_tokens, dtype=torch.float64)
    longest = max(map(len, prompt_ids))
    prompts = torch.tensor([[pad_token_id] * (longest - len(ids)) + ids for ids in prompt_ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=model.device)
    draw = DrawTokens(TokenSampler(params, eos_token_ids, model.device), uniform.to(model.device))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_ids,
        pad_token_id=pad_token_id,
        suppress_tokens=[*params.suppress_tokens] or None,
    )
    # What the model's own configuration says and ours does not would be taken from it.
    own, model.generation_config = model.generation_config, GenerationConfig()
    generative: Any = model  # PreTrainedModel declares no `generate`
    try:
        output = generative.generate(
            prompts,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([draw]),
        )
    finally:
        model.generation_config = own
    log_probs, kept = (torch.stack([getattr(one, name) for one in draw.drawn], 1) for name in ("log_probs", "kept"))
    masks = [one.mask for one in draw.drawn if one.mask is not None]
    return gather_rollout(
        output[:, longest:], log_probs, kept, torch.stack(masks, 1) if masks else None, eos_token_ids
    )
