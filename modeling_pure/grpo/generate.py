"""The same rollout by transformers' `generate`, for models whose attention cannot be taken over (`shared_prefix`).

Slower: every completion runs its prompt itself, and finished ones stay in the batch.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from .rollout import Rollout, gather_rollout
from .sampling import SamplingParams, TokenSampler, pack_bits


class KeepRecorder(LogitsProcessor):
    """Cuts unlikely tokens off and remembers the rest.

    A processor of the caller runs before transformers' own cuts and would not see what these leave; so it makes the
    cuts itself, and `generate` is asked for none.
    """

    def __init__(self, sampler: TokenSampler) -> None:
        self.sampler = sampler
        self.dense: torch.Tensor | None = None
        self.log_probs: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (batch, vocab) of what is kept, -inf elsewhere; notes the token that was drawn last."""
        self.note_drawn(input_ids[:, -1:])
        step = torch.tensor([len(self.kept)], device=scores.device)
        ids, log_probs = self.sampler.candidates(scores, step)
        self.dense = torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter_(-1, ids, log_probs)
        kept = self.dense > -torch.inf
        self.kept.append(kept.sum(-1))
        if self.sampler.params.masks:
            self.masks.append(pack_bits(kept))
        return self.dense

    def note_drawn(self, tokens: torch.Tensor) -> None:
        """Take down the log-probabilities of the tokens (rows, 1) that were drawn from what the last call returned."""
        if self.dense is not None:
            self.log_probs.append(self.dense.gather(-1, tokens)[:, 0])


@torch.no_grad()
def generate_completions(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    params: SamplingParams,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    fp32_head: bool = True,
) -> Rollout:
    """`rollout.sample_completions`, with another use of random numbers.

    `fp32_head` is left to the model, whose head TRL has cast; not where it is tied, which under bf16 is then rounded.
    """
    longest = max(map(len, prompt_ids))
    prompts = torch.tensor([[pad_token_id] * (longest - len(ids)) + ids for ids in prompt_ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=model.device)
    recorder = KeepRecorder(TokenSampler(params, eos_token_ids, model.device))
    settings = GenerationConfig(
        do_sample=True, max_new_tokens=max_new_tokens, eos_token_id=eos_token_ids, pad_token_id=pad_token_id, top_k=0
    )
    # What the model's own configuration says and ours does not would be taken from it.
    own, model.generation_config = model.generation_config, GenerationConfig()
    generative: Any = model  # PreTrainedModel declares no `generate`
    try:
        output = generative.generate(
            prompts,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([recorder]),
        )
    finally:
        model.generation_config = own
    recorder.note_drawn(output[:, -1:])
    log_probs, kept = torch.stack(recorder.log_probs, 1), torch.stack(recorder.kept, 1)
    masks = torch.stack(recorder.masks, 1) if recorder.masks else None
    return gather_rollout(output[:, longest:], log_probs, kept, masks, eos_token_ids)
