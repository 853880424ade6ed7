"""The masked head against float64 autograd, and its memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_pure.grpo import log_probs as module
from modeling_pure.grpo.log_probs import head_logits, token_log_probs
from modeling_pure.grpo.sampling import pack_bits

TOKENS, HIDDEN, VOCAB = 40, 16, 101


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(HIDDEN, VOCAB), torch.randn(TOKENS, HIDDEN)
    tokens, keep = torch.randint(0, VOCAB, (TOKENS,)), torch.rand(TOKENS, VOCAB) < 0.3
    return head, hidden, tokens, keep.scatter(1, tokens[:, None], True)


def in_double(head, hidden, tokens, keep, temperature):
    """Log-probabilities, entropies and the leaves of the plain computation in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, head.weight, head.bias)]
    scores = torch.nn.functional.linear(*leaves) / temperature
    if keep is not None:
        scores = scores.masked_fill(~keep, -1e30)
    every = scores.log_softmax(-1)
    return every.gather(1, tokens[:, None])[:, 0], -(every.exp() * every).sum(1), leaves


@pytest.mark.parametrize("chunk", [1024, 16, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_values_and_gradients_are_those_of_float64(inputs, chunk, masked, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    head, hidden, tokens, keep = inputs
    keep = keep if masked else None
    hidden.requires_grad_()
    found = token_log_probs(head, hidden, tokens, pack_bits(keep) if masked else None, 0.7, fp32=True)
    log_probs, entropies, leaves = in_double(head, hidden, tokens, keep, 0.7)
    weights = torch.randn(2, TOKENS)
    (found[0] * weights[0] + found[1] * weights[1]).sum().backward()
    (log_probs * weights[0] + entropies * weights[1]).sum().backward()
    torch.testing.assert_close(found[0].double(), log_probs, atol=5e-6, rtol=0)
    torch.testing.assert_close(found[1].double(), entropies, atol=5e-6, rtol=0)
    for ours, theirs in zip((hidden, head.weight, head.bias), leaves, strict=True):
        assert ((ours.grad - theirs.grad).norm() / theirs.grad.norm()).item() < 1e-6


def test_only_kept_rows_of_the_head_have_a_gradient(inputs):
    head, hidden, tokens, keep = inputs
    token_log_probs(head, hidden[:1], tokens[:1], pack_bits(keep[:1]), 1.0, fp32=True)[0].sum().backward()
    assert torch.equal((head.weight.grad != 0).any(1), keep[0])


def test_log_probabilities_alone_can_be_differentiated_and_frozen_weights_get_no_gradient(inputs):
    head, hidden, tokens, keep = inputs
    head.requires_grad_(False)
    hidden.requires_grad_()
    token_log_probs(head, hidden, tokens, pack_bits(keep), 1.0, fp32=True)[0].sum().backward()
    assert head.weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_no_token_to_score_gives_a_zero_gradient(inputs):
    head, hidden, tokens, _ = inputs
    hidden.requires_grad_()
    log_probs, _ = token_log_probs(head, hidden[:0], tokens[:0], None, 1.0, fp32=True)
    log_probs.sum().backward()
    assert len(log_probs) == 0
    assert not hidden.grad.any()
    assert not head.weight.grad.any()


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation creates."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))])
        return result


def test_only_one_chunk_of_logits_exists_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 8)
    head, hidden = torch.nn.Linear(4, 1000, bias=False), torch.randn(100, 4, requires_grad=True)
    tokens, packed = torch.randint(0, 1000, (100,)), torch.full((100, 125), 255, dtype=torch.uint8)
    with LargestTensor() as largest:
        token_log_probs(head, hidden, tokens, packed, 1.0, fp32=True)[0].sum().backward()
    assert largest.numel == 8 * 1000


def test_the_head_can_be_float32_under_autocast(inputs):
    head, hidden, tokens, _ = inputs
    exact = head(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head_logits(head, hidden, fp32=True)
        log_probs, _ = token_log_probs(head, hidden, tokens, None, 1.0, fp32=True)
        rounded = head_logits(head, hidden.bfloat16(), fp32=False)
    torch.testing.assert_close(logits, exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_probs, exact.log_softmax(-1).gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=0)
    assert (rounded - exact).abs().max() > 1e-3
