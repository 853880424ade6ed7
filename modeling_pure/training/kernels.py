"""GPU kernels: the choice for attention, compiled layers, and document masking without a mask tensor."""

import inspect
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..attention_pure import VARLEN, expand_float32_heads
from ..modeling_pure import PureForCausalLM

# torch 2.12 requires this option for fewer key heads than query heads; 2.11 has no such option.
GROUPED_HEADS = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
OTHER_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ATTENTION_KERNELS = {  # `attention_kernel` -> what sdpa tries, in order; None keeps torch's own order
    "auto": None,
    "flash": OTHER_KERNELS,
    "cudnn": [SDPBackend.CUDNN_ATTENTION, *OTHER_KERNELS],
}
_chosen = ExitStack()  # keeps sdpa's order until the next choice


def choose_attention_kernel(kernel: str) -> None:
    """Set the kernels that scaled dot-product attention may use, in order of preference.

    The setting is process-wide because autograd runs the backward pass and recomputation in separate threads. On
    Hopper and newer GPUs, PyTorch prefers cuDNN to flash; but cuDNN builds a new plan for every input shape, so phases
    with variable batch lengths default to flash.
    """
    tag = f"{os.environ.get('TORCH_COMPILE_CACHE_KEY_TAG', '')} attention_kernel={kernel}"
    if tag != torch.compiler.config.cache_key_tag:
        # The compiler's caches, on disk and in memory, are not keyed by this choice.
        torch.compiler.config.cache_key_tag = tag
        torch._dynamo.reset()
    _chosen.close()
    if order := ATTENTION_KERNELS[kernel]:
        _chosen.enter_context(sdpa_kernel(order, set_priority=True))


def describe_attention(model: PreTrainedModel, device: torch.device, bf16: bool) -> str:
    """The attention implementation, and for sdpa the kernel that it selects in training."""
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or device.type not in ("cpu", "cuda"):
        return config._attn_implementation
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    query, key = (
        torch.empty(1, number, 128, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
        for number in (heads, getattr(config, "num_key_value_heads", None) or heads)
    )
    key, _ = expand_float32_heads(query, key, key, None)
    selected = SDPBackend(torch._fused_sdp_choice(query, key, key, is_causal=True, enable_gqa=True))
    return f"sdpa, {selected.name.lower()}"


def compile_layers(model: PureForCausalLM) -> None:
    """Compile every decoder layer and the loss of a chunk in place, which keeps the names of the weights.

    The layers share one compilation, which takes seconds. The loop over them and the creation of masks stay eager: a
    compiled mask would rule out the flash kernel.
    """
    for region in (*model.model.layers, model.token_loss):
        region.compile()
    model.model.register_forward_pre_hook(allow_any_number_of_documents, with_kwargs=True)


def allow_any_number_of_documents(decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a forward pass: tell the compiler that the number of documents varies between batches."""
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if name in kwargs and not torch.compiler.is_compiling():
            torch._dynamo.maybe_mark_dynamic(kwargs[name], 0)


def separate_documents_by_lengths(model: PureForCausalLM) -> None:
    """Attend within documents through the variable-length flash kernel, if the batch states document lengths.

    `torch.nn.attention.varlen` takes cumulative lengths, which `collate_sequences` provides. A mask of shape
    (batch, 1, length, length) would rule out every flash kernel. Half precision on a GPU only.
    """
    ALL_ATTENTION_FUNCTIONS.register(VARLEN, varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, sdpa_mask)  # for batches without lengths
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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within documents.

    Args:
        query, key, value: (batch, heads, length, head_dim), with fewer heads of keys and values.
        cu_seq_lens_q, cu_seq_lens_k: starts of the documents in the flattened batch, int32 of shape (documents + 1,).
            Without them this is scaled dot-product attention, with the mask if there is one.
        max_length_q, max_length_k: upper limit of a document's tokens.

    Returns:
        the output, of shape (batch, length, heads, head_dim), and no attention weights.
    """
    if cu_seq_lens_q is None:
        key, value = expand_float32_heads(query, key, value, attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # The rotary embedding returns queries and keys in float32; values have autocast's dtype.
    flat = (states.transpose(1, 2).flatten(0, 1).to(value.dtype) for states in (query, key, value))
    lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    attend: Callable[..., Any] = varlen_attn  # its signature differs between versions of torch
    mixed = attend(*flat, *lengths, scale=scaling, window_size=(-1, 0), **GROUPED_HEADS)
    return mixed.unflatten(0, (query.shape[0], query.shape[2])), None
