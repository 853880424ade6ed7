"""A Pure and a Llama of the same weights."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_pure import PureConfig, PureForCausalLM


def make_pair(implementation: str, dtype: torch.dtype = torch.float32) -> tuple[PureForCausalLM, LlamaForCausalLM]:
    """The real head shape (72 wide, four query heads to one key head) in a small model, and its Llama twin."""
    shape = {
        "vocab_size": 512,
        "hidden_size": 288,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    config = PureConfig(**shape, num_real_tokens=None, initializer_range=0.08, head_initializer_range=0.08)
    pure = PureForCausalLM._from_config(config, attn_implementation=implementation, dtype=dtype)
    llama = LlamaForCausalLM._from_config(LlamaConfig(**shape), attn_implementation=implementation, dtype=dtype)
    result = llama.load_state_dict(pure.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all("norm" in key for key in result.missing_keys)
    return pure, llama
