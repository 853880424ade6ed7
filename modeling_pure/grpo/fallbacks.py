"""Sampling by `generate` and scoring of full sequences, for models whose attention cannot be replaced.

Slower: every completion recomputes its prompt, and finished ones stay in the batch.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from .rollout import Rollout, completion_length, gather_rollout
from .sampling import SampledTokens, SamplingParams, TokenSampler


class DrawTokens(LogitsProcessor):
    """Draws each token itself and leaves it to `generate` as the only possible one.

    Args:
        uniform: a random number in [0, 1) per token, float64 of shape (rows, longest completion).
    """

    def __init__(self, sampler: TokenSampler, uniform: torch.Tensor) -> None:
        self.sampler, self.uniform = sampler, uniform
        self.drawn: list[SampledTokens] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, vocab) that are 0 for the drawn token and -inf elsewhere."""
        step = len(self.drawn)
        drawn = self.sampler(scores, torch.tensor([step], device=scores.device), self.uniform[:, step])
        self.drawn.append(drawn)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn.tokens[:, None], 0.0)


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
    """Like `rollout.sample_completions`, with the same tokens.

    `fp32_head` is ignored: TRL has cast the model's head, unless it is tied to the embedding.
    """
    if uniform is None:
        uniform = torch.rand(len(prompt_ids), max_new_tokens, dtype=torch.float64)
    draw = DrawTokens(TokenSampler(params, eos_token_ids, model.device), uniform.to(model.device))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_ids,
        pad_token_id=pad_token_id,
        suppress_tokens=[*params.suppress_tokens] or None,
    )
    ids = generated_ids(model, prompt_ids, settings, draw)
    log_probs, kept = (torch.stack([getattr(one, name) for one in draw.drawn], 1) for name in ("log_probs", "kept"))
    masks = [one.mask for one in draw.drawn if one.mask is not None]
    return gather_rollout(ids, log_probs, kept, torch.stack(masks, 1) if masks else None, eos_token_ids)


def generate_without_masks(
    model: PreTrainedModel, prompt_ids: list[list[int]], settings: GenerationConfig, eos_token_ids: list[int]
) -> Rollout:
    """Sample by `generate` alone, with options that no keep-sampling mask can express."""
    rows = generated_ids(model, prompt_ids, settings).tolist()
    return Rollout([ids[: completion_length(ids, eos_token_ids)] for ids in rows], [], [], None)


@torch.no_grad()
def generated_ids(
    model: PreTrainedModel, prompt_ids: list[list[int]], settings: GenerationConfig, *processors: LogitsProcessor
) -> torch.Tensor:
    """The ids that `generate` appends to the prompts, shape (prompts, longest completion)."""
    longest, pad = max(map(len, prompt_ids)), settings.pad_token_id
    prompts = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompt_ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=model.device)
    # `generate` takes unset values from the model's own configuration.
    own, model.generation_config = model.generation_config, GenerationConfig()
    generative: Any = model  # PreTrainedModel declares no `generate`
    try:
        output: torch.Tensor = generative.generate(
            prompts, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList(processors)
        )
    finally:
        model.generation_config = own
    return output[:, longest:]


def row_hidden_states(
    model: PreTrainedModel,
    prompts: torch.Tensor,
    lengths: torch.Tensor,
    completions: torch.Tensor,
    scored: torch.Tensor,
) -> torch.Tensor:
    """Like `scoring.shared_hidden_states`, from full sequences without a gap between prompt and completion."""
    places = lengths[:, None] + torch.arange(completions.shape[1], device=prompts.device)
    rows = torch.nn.functional.pad(prompts, (0, completions.shape[1])).scatter(1, places, completions)
    mask = torch.arange(rows.shape[1], device=rows.device) < (lengths + scored.sum(1))[:, None]
    hidden = model.base_model(input_ids=rows, attention_mask=mask.long(), use_cache=False).last_hidden_state
    return hidden.gather(1, (places - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
