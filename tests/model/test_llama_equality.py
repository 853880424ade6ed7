"""Pure is exactly a Llama whose norm weights are one, or with `qk_norm` such a Qwen3: equal to the last bit."""

import pytest
import torch
from transformers import DynamicCache

from tests.model.twins import PEERS, make_pair


def batch() -> torch.Tensor:
    return torch.randint(2, 512, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_loss_and_every_gradient_are_bit_equal(peer, implementation):
    pure, twin = make_pair(implementation, peer=peer)
    ids = batch()
    labels = ids.masked_fill(ids % 5 == 0, -100)
    ours, theirs = pure(ids, labels=labels), twin(ids, labels=labels)
    assert ours.logits.std() > 0.5
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    expected = {name: p.grad for name, p in twin.named_parameters()}
    unequal = [name for name, p in pure.named_parameters() if not torch.equal(p.grad, expected[name])]
    assert unequal == []


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_bfloat16_logits_are_bit_equal(peer, implementation):
    pure, twin = make_pair(implementation, torch.bfloat16, peer)
    with torch.no_grad():
        assert torch.equal(pure(batch()).logits, twin(batch()).logits)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks_packing_and_the_cache_are_those_of_its_peer(peer, implementation):
    pure, twin = make_pair(implementation, peer=peer)
    pure.eval(), twin.eval()
    ids = batch()
    left_padded = torch.ones_like(ids)
    left_padded[0, :7] = 0
    packed = torch.cat([torch.arange(15), torch.arange(25)]).repeat(2, 1)
    with torch.no_grad():
        for inputs in ({"attention_mask": left_padded}, {"position_ids": packed, "use_cache": False}):
            assert torch.equal(pure(ids, **inputs).logits, twin(ids, **inputs).logits)
        steps = []
        for model in (pure, twin):
            cache = DynamicCache(config=model.config)
            model(ids[:, :-1], past_key_values=cache)
            steps.append(model(ids[:, -1:], past_key_values=cache).logits)
        assert torch.equal(*steps)


@pytest.mark.parametrize("peer", PEERS)
def test_num_items_in_batch_reaches_the_loss(peer):
    pure, twin = make_pair("sdpa", peer=peer)
    ids = batch()
    ours = pure(ids, labels=ids, num_items_in_batch=100).loss
    assert torch.equal(ours, twin(ids, labels=ids, num_items_in_batch=100).loss)
    torch.testing.assert_close(ours, pure(ids, labels=ids).loss * 78 / 100)


def test_queries_and_keys_are_normalised_only_with_qk_norm():
    for peer, expected in (("llama", False), ("qwen3", True)):
        pure, _ = make_pair("sdpa", peer=peer)
        parameters = pure.num_parameters()
        seen: list[torch.Tensor] = []
        pure.model.layers[0].self_attn.qk_norm.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        pure(batch())
        squares = torch.stack([states.square().mean(-1).mean() for states in seen])
        assert torch.allclose(squares, torch.ones(2), atol=1e-3) is expected
        assert parameters == make_pair("sdpa")[0].num_parameters()
