"""Sampling a token: the kept set equals transformers', and samples follow the probabilities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modeling_pure.errors import InputError
from modeling_pure.grpo.sampling import SamplingParams, TokenSampler, draw, pack_bits, unpack_bits

STEP = torch.zeros(1, dtype=torch.long)


def sampler(**params) -> TokenSampler:
    return TokenSampler(SamplingParams(**params), [0], torch.device("cpu"))


def dense(ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    return torch.full((len(ids), 97), -torch.inf).scatter(-1, ids, log_probs)


@given(rows=st.integers(1, 4), width=st.integers(1, 70), seed=st.integers(0, 999))
def test_packed_bits_are_unpacked_unchanged(rows, width, seed):
    mask = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-width // 8))
    assert torch.equal(unpack_bits(packed, width), mask)


@settings(deadline=None)
@given(
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 40, 500]),
    top_p=st.sampled_from([0.1, 0.6, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    suppress=st.sampled_from([(), (3,), (0, 50, 96)]),
    seed=st.integers(0, 99),
)
def test_the_kept_set_and_its_probabilities_are_those_of_transformers(
    temperature, top_k, top_p, min_p, suppress, seed
):
    logits = 3 * torch.randn(5, 97, generator=torch.Generator().manual_seed(seed))
    peers = LogitsProcessorList()
    if suppress:
        peers.append(SuppressTokensLogitsProcessor(list(suppress)))
    peers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        peers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        peers.append(TopPLogitsWarper(top_p))
    if min_p:
        peers.append(MinPLogitsWarper(min_p))
    expected = peers(None, logits.clone()).log_softmax(-1)
    ours = sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, suppress_tokens=suppress)
    found = dense(*ours.candidates(logits, STEP))
    assert torch.equal(found > -torch.inf, expected > -torch.inf)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_min_new_tokens_delays_the_end_of_text():
    ours, logits = sampler(min_new_tokens=2), torch.zeros(1, 97)
    for step, kept in ((0, False), (1, False), (2, True)):
        found = dense(*ours.candidates(logits, torch.tensor([step])))
        assert (found[0, 0] > -torch.inf) == kept
        assert (found[0, 1:] > -torch.inf).all()


def test_draws_follow_the_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    uniform = torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw(probs.log().expand(len(uniform), -1), uniform)[:, 0]
    counts = torch.bincount(drawn, minlength=5)
    assert counts[1] == 0
    kept = probs > 0
    assert chisquare(counts[kept].numpy(), (probs[kept] / probs.sum() * len(uniform)).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_draws_at_the_ends_of_the_interval_are_possible_tokens(uniform):
    log_probs = torch.tensor([[-torch.inf, 0.2, 0.8, -torch.inf]]).log_softmax(-1)
    place = draw(log_probs, torch.tensor([uniform], dtype=torch.float64))
    assert place.item() in (1, 2)


def test_a_sampled_token_is_in_its_mask_with_its_log_probability():
    logits = 3 * torch.randn(64, 97, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    drawn = sampler(temperature=0.7, top_p=0.8)(logits, STEP, uniform)
    kept = unpack_bits(drawn.mask, 97)
    assert torch.equal(kept.sum(1).int(), drawn.kept)
    assert kept.gather(1, drawn.tokens[:, None]).all()
    over_kept = (logits / 0.7).masked_fill(~kept, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(drawn.log_probs, over_kept.gather(1, drawn.tokens[:, None])[:, 0], atol=1e-5, rtol=0)
    assert sampler()(logits, STEP, uniform).mask is None


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 1.0}]
)
def test_invalid_settings_raise_an_error_that_names_them(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "):
        SamplingParams(**wrong)
