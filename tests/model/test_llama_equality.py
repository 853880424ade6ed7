"""Pure is exactly a Llama whose norm weights are one: every number is equal to the last bit."""

import pytest
import torch
from transformers import DynamicCache

from tests.model.twins import make_pair


def batch() -> torch.Tensor:
    return torch.randint(2, 512, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_loss_and_every_gradient_are_bit_equal(implementation):
    pure, llama = make_pair(implementation)
    ids = batch()
    labels = ids.masked_fill(ids % 5 == 0, -100)
    ours, theirs = pure(ids, labels=labels), llama(ids, labels=labels)
    assert ours.logits.std() > 0.5
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    expected = {name: p.grad for name, p in llama.named_parameters()}
    unequal = [name for name, p in pure.named_parameters() if not torch.equal(p.grad, expected[name])]
    assert unequal == []


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_bfloat16_logits_are_bit_equal(implementation):
    pure, llama = make_pair(implementation, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(pure(batch()).logits, llama(batch()).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks_packing_and_the_cache_are_those_of_llama(implementation):
    pure, llama = make_pair(implementation)
    pure.eval(), llama.eval()
    ids = batch()
    left_padded = torch.ones_like(ids)
    left_padded[0, :7] = 0
    packed = torch.cat([torch.arange(15), torch.arange(25)]).repeat(2, 1)
    with torch.no_grad():
        for inputs in ({"attention_mask": left_padded}, {"position_ids": packed, "use_cache": False}):
            assert torch.equal(pure(ids, **inputs).logits, llama(ids, **inputs).logits)
        steps = []
        for twin in (pure, llama):
            cache = DynamicCache(config=twin.config)
            twin(ids[:, :-1], past_key_values=cache)
            steps.append(twin(ids[:, -1:], past_key_values=cache).logits)
        assert torch.equal(*steps)


def test_num_items_in_batch_reaches_the_loss():
    pure, llama = make_pair("sdpa")
    ids = batch()
    ours = pure(ids, labels=ids, num_items_in_batch=100).loss
    assert torch.equal(ours, llama(ids, labels=ids, num_items_in_batch=100).loss)
    torch.testing.assert_close(ours, pure(ids, labels=ids).loss * 78 / 100)
