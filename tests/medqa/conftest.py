"""A small random model that prefers something: with the real initial scales every logit is near zero."""

import pytest
import torch

from modeling_pure import PureConfig, PureForCausalLM


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = PureConfig.from_preset(
        "tiny", hidden_size=64, intermediate_size=160, initializer_range=0.1, head_initializer_range=0.1
    )
    return PureForCausalLM(config).eval()
