"""Scoring completions with the prompt of a group run once, forward and backward, instead of once for each of them.

The prompt goes through the model alone and leaves its keys and values in a cache; the completions of the group follow
on copies of it. Autograd sums over the copies what each completion says about the prompt, so loss and gradients are
those of whole rows. With G completions of C tokens to a prompt of P, P + G C tokens are run instead of G (P + C).
"""

import functools
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..attention_pure import CACHE
from ..errors import InputError
from .log_probs import token_log_probs

ATTENTION = ("sdpa", "eager")  # those whose masks are tested to have holes
LENGTH_BOUND_ROPE = ("dynamic", "longrope")
# What a configuration says of logits that are more than `W h + b`; the scorer reads W and b alone.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def shared_prefix_obstacle(model: PreTrainedModel, checkpointing: bool) -> str | None:
    """Why the prompts of a model cannot be run once for their group; None where they can."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    if set(layer_types) != {"full_attention"} or (not hasattr(config, "layer_types") and has_window(config)):
        return f"not all layers of {type(model).__name__} attend to everything before them"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in LENGTH_BOUND_ROPE:
        return "its rotary embedding depends on the longest row of a batch"
    if config._attn_implementation not in ATTENTION:
        return f"attn_implementation {config._attn_implementation} is not among {', '.join(ATTENTION)}"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} does not take another attention function"
    return "gradient_checkpointing keeps no keys and values" if checkpointing else None


def refuse_changed_logits(model: PreTrainedModel) -> None:
    """Raise `InputError` if a configuration says that logits are more than the head's product."""
    config = model.config.get_text_config()
    changed = [name for name in LOGIT_CHANGES if getattr(config, name, None) not in (None, 1.0)]
    if changed:
        raise InputError(f"model_name_or_path: its {changed[0]} changes the logits, which scoring here leaves out")


def has_window(config: PreTrainedConfig) -> bool:
    """Whether attention reaches back over so many tokens only."""
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def add_scoring(model: PreTrainedModel, temperature: float, fp32_head: bool, share_prefix: bool) -> None:
    """Let `model(input_ids=..., completion_length=C, ...)` give log-probabilities (see `score_completions`).

    Through `forward`, as TRL adds its own head, because DDP and autocast are wrapped around it. Every other call is
    what it was.
    """
    inner = model.forward

    @functools.wraps(inner)
    def forward(
        *args: Any, completion_length: int | None = None, sampling_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if completion_length is None:
            return inner(*args, **kwargs)
        batch = kwargs["input_ids"], kwargs["attention_mask"], sampling_mask
        return score_completions(model, completion_length, temperature, fp32_head, share_prefix, *batch)

    model.forward = forward


def score_completions(
    model: PreTrainedModel,
    completion_length: int,
    temperature: float,
    fp32_head: bool,
    share_prefix: bool,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    sampling_mask: torch.Tensor | None,
) -> ModelOutput:
    """Log-probabilities of the completions of a batch as TRL lays it out.

    Args:
        completion_length: columns that hold completions, right-padded; those before hold prompts, left-padded.
        input_ids, attention_mask: shape (batch, prompt + completion). Rows with the same prompt share it where they
            stand next to each other, however many they are.
        sampling_mask: bits of shape (batch, completion, ceil(vocab / 8)).

    Returns:
        `log_probs` and `entropy`, float32 of shape (batch, completion), 0 where the mask is.
    """
    split = input_ids.shape[1] - completion_length
    prompts, prompt_mask = input_ids[:, :split], attention_mask[:, :split].bool()
    scored = attention_mask[:, split:].bool()
    # The columns that any row needs; at least one, so that a batch with nothing to score still has a gradient of 0.
    longest = max(1, int(scored.sum(1).max()))
    completions, scored = input_ids[:, split : split + longest], scored[:, :longest]
    of_group = group_rows(prompts.masked_fill(~prompt_mask, -1)) if share_prefix else torch.arange(len(prompts))
    first = torch.cat([of_group.new_ones(1), of_group.diff()]).bool()
    prompts, lengths = left_aligned(prompts[first], prompt_mask[first])
    of_group = of_group.to(input_ids.device)
    if share_prefix:
        hidden = shared_hidden_states(model, prompts, lengths, completions, scored, of_group)
    else:
        hidden = row_hidden_states(model, prompts, lengths, completions, scored)
    log_probs, entropy = token_log_probs(
        model.get_output_embeddings(),
        hidden[scored],
        completions[scored],
        None if sampling_mask is None else sampling_mask[:, :longest][scored],
        temperature,
        fp32_head,
    )
    shape = (len(input_ids), completion_length)
    where = torch.nn.functional.pad(scored, (0, completion_length - longest))
    return ModelOutput(
        log_probs=log_probs.new_zeros(shape).masked_scatter(where, log_probs),
        entropy=entropy.new_zeros(shape).masked_scatter(where, entropy),
    )


def group_rows(prompts: torch.Tensor) -> torch.Tensor:
    """The number of the group of each row, shape (rows,): neighbours with the same prompt are of one."""
    changes = (prompts[1:] != prompts[:-1]).any(1)
    return torch.cat([changes.new_zeros(1), changes]).cumsum(0)


def left_aligned(prompts: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts (rows, length) padded on the right, where no token sees the padding, and their lengths."""
    lengths = mask.sum(1)
    places = torch.arange(int(lengths.max()), device=prompts.device) + (prompts.shape[1] - lengths)[:, None]
    return prompts.gather(1, places.clamp(max=prompts.shape[1] - 1)), lengths


def shared_hidden_states(
    model: PreTrainedModel,
    prompts: torch.Tensor,
    lengths: torch.Tensor,
    completions: torch.Tensor,
    scored: torch.Tensor,
    of_group: torch.Tensor,
) -> torch.Tensor:
    """The hidden states that predict each completion's tokens, shape (batch, completion, hidden)."""
    cache = DynamicCache(config=model.config)
    hidden = model.base_model(input_ids=prompts, **{CACHE: cache}, use_cache=True).last_hidden_state
    last = hidden[torch.arange(len(prompts), device=prompts.device), lengths - 1][of_group, None]
    if completions.shape[1] == 1:
        return last
    cache.batch_select_indices(of_group)
    columns = torch.arange(prompts.shape[1], device=prompts.device)
    prompt_mask = (columns < lengths[:, None])[of_group]
    positions = lengths[of_group, None] + torch.arange(completions.shape[1] - 1, device=prompts.device)
    hidden = model.base_model(
        input_ids=completions[:, :-1],
        attention_mask=torch.cat([prompt_mask, scored[:, :-1]], 1),
        position_ids=positions,
        use_cache=True,
        **{CACHE: cache},
    ).last_hidden_state
    return torch.cat([last, hidden], 1)


def row_hidden_states(
    model: PreTrainedModel,
    prompts: torch.Tensor,
    lengths: torch.Tensor,
    completions: torch.Tensor,
    scored: torch.Tensor,
) -> torch.Tensor:
    """The same from whole rows, prompt and completion without a gap, for models that cannot share."""
    places = lengths[:, None] + torch.arange(completions.shape[1], device=prompts.device)
    rows = torch.nn.functional.pad(prompts, (0, completions.shape[1])).scatter(1, places, completions)
    columns = torch.arange(rows.shape[1], device=rows.device)
    mask = columns < (lengths + scored.sum(1))[:, None]
    hidden = model.base_model(input_ids=rows, attention_mask=mask.long(), use_cache=False).last_hidden_state
    return hidden.gather(1, (places - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
