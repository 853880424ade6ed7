"""A Pure and a Llama (or a Qwen3) with the same weights, and helpers of tests that compare them."""

from typing import Any

import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling_pure import PureConfig, PureForCausalLM

PEERS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
Twins = tuple[PureForCausalLM, PreTrainedModel]
PAD = 1
SMALL_BATCHES = {  # otherwise continuous batching takes most of the memory
    "continuous_batching_config": ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
    "progress_bar": False,
}


def make_pair(implementation: str, dtype: torch.dtype = torch.float32, peer: str = "llama") -> Twins:
    """The real head shape (72 wide, four query heads to one key head) in a small model, and its twin in `PEERS`."""
    shape = {
        "vocab_size": 512,
        "hidden_size": 288,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 72,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    ranges = {"initializer_range": 0.08, "head_initializer_range": 0.08}
    config = PureConfig(**shape, **ranges, num_real_tokens=None, qk_norm=peer == "qwen3")
    pure = PureForCausalLM._from_config(config, attn_implementation=implementation, dtype=dtype)
    peer_config, peer_model = PEERS[peer]
    twin = peer_model._from_config(peer_config(**shape), attn_implementation=implementation, dtype=dtype)
    result = twin.load_state_dict(pure.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all("norm" in key for key in result.missing_keys)
    return pure, twin


def padded(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The second prompt is shorter and starts with padding."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    ids[1, :9], mask[1, :9] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert equality to the last bit, for any structure."""
    if isinstance(ours, torch.Tensor):
        assert ours.shape == theirs.shape
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_same(ours[name], theirs[name])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    elif isinstance(ours, DynamicCache):
        assert_same([(one.keys, one.values) for one in ours.layers], [(one.keys, one.values) for one in theirs.layers])
    else:
        assert ours == theirs
