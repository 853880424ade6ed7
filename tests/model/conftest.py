"""Small models whose outputs differ enough to be compared."""

import os
import shutil

import pytest
import torch

from modeling_pure import PureConfig, PureForCausalLM

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler")


@pytest.fixture
def config() -> PureConfig:
    """The `tiny` preset with large weights: at the real scales every logit is near zero and all comparisons hold."""
    return PureConfig.from_preset("tiny", initializer_range=0.1, head_initializer_range=0.1)


@pytest.fixture
def model(config: PureConfig) -> PureForCausalLM:
    torch.manual_seed(0)
    return PureForCausalLM(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of 24 ordinary tokens (no end, no padding)."""
    return torch.randint(2, 2048, (2, 24), generator=torch.Generator().manual_seed(1))
