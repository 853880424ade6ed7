"""Which positions attend to which: packed documents, unnecessary masks, and the three attention paths."""

import pytest
import torch
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_pure.attention_pure import eager_attention_forward, packed_lengths
from tests.conftest import needs_compiler

LENGTHS = (9, 15)


@pytest.fixture
def positions() -> torch.Tensor:
    """Two documents in every sequence of 24."""
    return torch.cat([torch.arange(length) for length in LENGTHS]).repeat(2, 1)


@pytest.fixture
def attention_calls(model, monkeypatch) -> list[dict]:
    """The arguments of every later call of sdpa."""
    calls = []

    def recording(module, query, key, value, attention_mask, **kwargs):
        calls.append({"mask": attention_mask, **kwargs})
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", recording)
    return calls


def separate_logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(part).logits for part in ids.split(LENGTHS, dim=1)], dim=1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("training", [True, False])
def test_packed_documents_equal_separate_ones(model, ids, positions, implementation, use_cache, training):
    """With `config.use_cache` at its default of true, Llama-style code lets documents attend to each other."""
    assert model.config.use_cache
    model.set_attn_implementation(implementation)
    model.train(training)
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=use_cache).logits
        one_document = model(ids).logits
    separate = separate_logits(model, ids)
    torch.testing.assert_close(packed, separate, rtol=0, atol=2e-5)
    assert (one_document - separate)[:, LENGTHS[0] :].abs().max() > 0.1


def test_no_gradient_crosses_document_boundaries(model, ids, positions):
    model.train()
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embeds, position_ids=positions).logits[:, LENGTHS[0] :].sum().backward()
    assert embeds.grad[:, : LENGTHS[0]].abs().max() == 0
    assert embeds.grad[:, LENGTHS[0] :].abs().min() > 0


def test_position_ids_change_the_result(model, ids):
    # Rotary embedding depends on distances only: a shift changes nothing, a stretch does.
    usual = torch.arange(24)[None]
    with torch.no_grad():
        plain, shifted, stretched = (model(ids, position_ids=p).logits for p in (usual, usual + 7, usual.flip(1)))
    torch.testing.assert_close(plain, shifted, rtol=0, atol=2e-4)
    assert (plain - stretched).abs().max() > 0.1


def test_no_unnecessary_mask_is_built(model, ids, positions, attention_calls):
    with torch.no_grad():
        for training in (True, False):
            model.train(training)
            model(ids)
            model(ids, position_ids=torch.arange(24)[None])
        assert len(attention_calls) == 4 * len(model.model.layers)
        assert all(call["mask"] is None for call in attention_calls)
        model(ids, position_ids=positions)
    assert attention_calls[-1]["mask"].shape == (2, 1, 24, 24)


def test_a_cache_is_made_in_eval_only(model, ids):
    with torch.no_grad():
        assert model(ids).past_key_values.get_seq_length() == 24
        assert model(ids, use_cache=False).past_key_values is None
        model.train()
        assert model(ids).past_key_values is None
        assert model(ids, use_cache=True).past_key_values is None
        given = DynamicCache(config=model.config)
        assert model(ids, past_key_values=given).past_key_values.get_seq_length() == 24


def test_sdpa_equals_eager(model, ids):
    padded = torch.ones_like(ids)
    padded[0, :5] = 0
    for inputs in ({}, {"attention_mask": padded}):
        logits = []
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                logits.append(model(ids, **inputs).logits[:, 5:])
        torch.testing.assert_close(*logits, rtol=0, atol=2e-5)


@needs_compiler
def test_flex_attention_equals_sdpa(model, ids, positions):
    for inputs in ({}, {"position_ids": positions}):
        logits = []
        for implementation in ("sdpa", "flex_attention"):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                logits.append(model(ids, **inputs).logits)
        torch.testing.assert_close(*logits, rtol=0, atol=2e-5)


def test_attentions_and_hidden_states_can_be_returned(model, ids):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(ids, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, 24, 24)] * 4
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 24))
    assert outputs.attentions[0].triu(1).abs().max() == 0
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 24, 128)] * 5


def varlen_reference(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, cu_seq_lens_k, **kwargs):
    """Flash attention on packed sequences: flatten the batch, then attend within each length."""
    assert attention_mask is None
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == max(LENGTHS)
    batch, length = query.shape[0], query.shape[2]
    flat = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]
    documents = zip(*[states.split(cu_seq_lens_q.diff().tolist()) for states in flat], strict=True)
    outputs = [
        sdpa_attention_forward(module, *[states.transpose(0, 1)[None] for states in one], None, scaling=scaling)[0]
        for one in documents
    ]
    return torch.cat(outputs, dim=1).view(batch, length, *outputs[0].shape[2:]), None


def test_flash_attention_gets_the_lengths_of_a_packed_batch(model, ids, positions, monkeypatch):
    """Transformers detects packing only in a batch of one; larger batches would silently mix documents."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_reference", varlen_reference)
    model.config._attn_implementation = "flash_reference"
    with torch.no_grad():
        packed = model(ids, position_ids=positions).logits
        lengths = torch.tensor([0, 9, 24, 33, 48], dtype=torch.int32)
        given = {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 15, "max_length_k": 15}
        torch.testing.assert_close(model(ids, position_ids=positions, **given).logits, packed, rtol=0, atol=0)
    model.config._attn_implementation = "sdpa"
    torch.testing.assert_close(packed, separate_logits(model, ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["my_varlen", "my_flash", "mine"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_registered_attention_gets_its_registered_mask(model, ids, positions, monkeypatch, name, packed):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, name, eager_attention_forward)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, eager_mask)
    lengths = torch.tensor([0, 9, 24, 33, 48], dtype=torch.int32)
    inputs = {"position_ids": positions, "cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths} if packed else {}
    with torch.no_grad():
        expected = model(ids, **inputs).logits
        model.config._attn_implementation = name
        torch.testing.assert_close(model(ids, **inputs).logits, expected, rtol=0, atol=2e-5)


def test_documents_of_one_token_have_their_own_boundaries():
    lengths = packed_lengths(torch.tensor([[0, 0, 0, 1, 2, 0], [0, 1, 0, 1, 0, 0]]))
    assert lengths["cu_seq_lens_q"].tolist() == lengths["cu_seq_lens_k"].tolist() == [0, 1, 2, 5, 6, 8, 10, 11, 12]
    assert lengths["max_length_q"] == lengths["max_length_k"] == 3
