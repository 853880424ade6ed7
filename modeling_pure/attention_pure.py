"""Attention without its projections: the plain implementation, masks, and boundaries of packed documents.

Pushed to the Hub as remote code, so it imports only torch and transformers.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_causal_mask,
    flash_attention_mask,
    sdpa_mask,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

# transformers 5.24 renamed `past_key_values` to `cache` in arguments and outputs. In earlier versions,
# continuous batching passes an unrelated `cache` to attention functions, so the model must not read it.
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"

VARLEN = "pure_varlen"  # the implementation that training/kernels.py registers


def eager_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention, the reference for the fused kernels. Also returns the attention weights.

    Query (batch, heads, length, head_dim), key and value with fewer heads; returns (batch, length, heads, head_dim).
    """
    key = key[:, :, None].expand(-1, -1, module.num_key_value_groups, -1, -1).flatten(1, 2)
    value = value[:, :, None].expand(-1, -1, module.num_key_value_groups, -1, -1).flatten(1, 2)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def expand_float32_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat key and value heads for maskless sdpa in float32 on a GPU; otherwise return them unchanged.

    The only fused float32 kernel, the memory-efficient one, does not share key heads between query heads; sdpa would
    fall back to a kernel that materialises all (length x length) scores. With a mask, transformers repeats heads.
    """
    # The dtype of the values decides: under autocast the rotary embedding leaves queries and keys in float32.
    if attention_mask is not None or not query.is_cuda or value.dtype != torch.float32:
        return key, value
    groups = query.shape[1] // key.shape[1]
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def choose_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    has_boundaries: bool,
) -> tuple[Any, dict[str, torch.Tensor | int]]:
    """Choose between a mask, boundaries of packed documents, and the causal kernel without either.

    Args:
        config: holds the attention implementation.
        inputs_embeds: shape (batch, length, hidden).
        attention_mask, position_ids, cache: as the caller passed them. Without position_ids, packing is not detected
            (that would need a device sync) and no mask is built (it would rule out sdpa's flash kernel).
        has_boundaries: whether the caller passed boundaries of packed documents.

    Returns:
        The implementation's mask or None, and the boundaries if they were computed here.
    """
    implementation = config._attn_implementation
    mask_function = ALL_MASK_ATTENTION_FUNCTIONS.get(implementation)
    is_flash = "flash" in implementation and mask_function in (None, flash_attention_mask)
    if attention_mask is None and cache is None:
        if has_boundaries and (is_flash or implementation == VARLEN):
            return None, {}
        if is_flash and position_ids is not None and not has_boundaries:
            return None, packed_lengths(position_ids.expand(inputs_embeds.shape[:2]))
        if mask_function is sdpa_mask and position_ids is None:
            return None, {}
    given: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids, CACHE: cache}
    return create_causal_mask(config=config, inputs_embeds=inputs_embeds, **given), {}


def packed_lengths(position_ids: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """Boundaries of packed documents from positions (batch, length); transformers supports only a batch of one."""
    starts = F.pad(position_ids.diff() != 1, (1, 0), value=True)
    offsets = F.pad(starts.flatten().nonzero().flatten(), (0, 1), value=position_ids.numel()).to(torch.int32)
    longest = int(offsets.diff().max())
    return {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}
