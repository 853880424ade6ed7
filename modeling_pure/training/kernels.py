"""What a GPU run computes with: each layer compiled by itself, and documents kept apart without a mask."""

import inspect

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..modeling_pure import PureForCausalLM

VARLEN = "varlen"
KERNEL_SHARES_KEYS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on


def compile_layers(model: PureForCausalLM) -> None:
    """Compile every decoder layer and the loss of a chunk, in place: names of weights stay as they are.

    The layers are alike and so compile once, in seconds. The loop over them and whatever makes masks stays outside,
    and with it what would keep attention from its flash kernel.
    """
    for region in (*model.model.layers, model.token_loss):
        region.compile()


def separate_documents_by_lengths(model: PureForCausalLM) -> None:
    """Attend within documents by the flash kernel for sequences of unequal length, where the batch states them.

    `torch.nn.attention.varlen` knows documents by their cumulative lengths (`collate_rows` gives them). A mask of
    (batch, 1, length, length) would keep attention from every flash kernel. Half precision on a GPU only.
    """
    ALL_ATTENTION_FUNCTIONS.register(VARLEN, varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, sdpa_mask)  # for batches that do not state lengths
    model.set_attn_implementation(VARLEN)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention within documents.

    Args:
        query, key, value: (batch, heads, length, head_dim), with fewer heads of keys and values.
        cu_seq_lens_q, cu_seq_lens_k: where documents begin in the flattened batch, int32 of shape (documents + 1,).
            Without them this is scaled dot-product attention, with the mask if there is one.
        max_length_q, max_length_k: tokens of the longest document.

    Returns:
        (batch, length, heads, head_dim), and no weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = {"enable_gqa": True} if KERNEL_SHARES_KEYS else {}
    if not grouped:
        key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    # The rotary embedding leaves queries and keys in float32; values have the dtype of autocast.
    flat = (states.transpose(1, 2).flatten(0, 1).to(value.dtype) for states in (query, key, value))
    lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    mixed = varlen_attn(*flat, *lengths, scale=scaling, window_size=(-1, 0), **grouped)
    return mixed.unflatten(0, (query.shape[0], query.shape[2])), None
