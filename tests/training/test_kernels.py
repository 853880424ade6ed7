"""Layers compiled one by one give the same numbers, and documents are apart whatever keeps them apart.

The flash kernel runs on a GPU only. Its place is taken by a plain one here, registered for the CPU under the same
operator, so that everything up to the kernel's own arguments is what a GPU run does.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from modeling_pure.data.mixture import document_boundaries
from modeling_pure.training.kernels import KERNEL_SHARES_KEYS, compile_layers, separate_documents_by_lengths
from tests.conftest import needs_compiler

END = 7


def attend_by_document(query, key, value, cu_seq_q, scale) -> torch.Tensor:
    """Causal attention of each document by itself; queries (tokens, heads, head_dim), keys with fewer heads."""
    parts = []
    for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (states[begin:end].transpose(0, 1) for states in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True))
    return torch.cat([part.transpose(0, 1) for part in parts])


@pytest.fixture
def plain_kernel(monkeypatch):
    """The reference in the place of the kernel; notes what it is called with."""
    calls = []

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
        calls.append({"documents": len(cu_seq_q) - 1, "longest": max_q, "window_size": window_size, "k": key})
        assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32
        return attend_by_document(query, key, value, cu_seq_q, scale)

    monkeypatch.setattr("modeling_pure.training.kernels.varlen_attn", kernel)
    return calls


@pytest.fixture
def packed() -> dict:
    """Two rows with documents of unequal length; one of them ends with its row."""
    ids = torch.randint(8, 2048, (2, 24), generator=torch.Generator().manual_seed(1))
    ids[0, 4], ids[0, 15], ids[1, 11] = END, END, END
    return {"input_ids": ids, "labels": ids, **document_boundaries(ids, END)}


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_lengths_keep_documents_apart_as_a_mask_does(model, packed, plain_kernel):
    model.train()
    loss, expected = loss_and_gradients(model, packed)
    assert plain_kernel == []
    separate_documents_by_lengths(model)
    by_lengths, found = loss_and_gradients(model, packed)
    assert len(plain_kernel) == len(model.model.layers)
    assert plain_kernel[0]["documents"] == 5 and plain_kernel[0]["longest"] == 12
    assert plain_kernel[0]["window_size"] == (-1, 0)
    torch.testing.assert_close(by_lengths, loss, rtol=1e-6, atol=0)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5 * expected[name].abs().max().item())


def test_no_mask_is_made_where_lengths_are_given(model, packed, plain_kernel, monkeypatch):
    def no_mask(**kwargs):
        raise AssertionError("a mask was made")

    separate_documents_by_lengths(model)
    monkeypatch.setattr("modeling_pure.modeling_pure.create_causal_mask", no_mask)
    model.train()(**packed)


def test_batches_without_lengths_are_attended_as_before(model, ids, plain_kernel):
    """Questions are scored and answers generated with padding, during the same run."""
    padded = torch.ones_like(ids)
    padded[0, :7] = 0
    with torch.no_grad():
        expected = [model(ids).logits, model(ids, attention_mask=padded).logits]
        separate_documents_by_lengths(model)
        found = [model(ids).logits, model(ids, attention_mask=padded).logits]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True)) and plain_kernel == []


def test_the_choice_of_kernel_does_not_travel_with_the_model(model, tmp_path):
    separate_documents_by_lengths(model)
    model.save_pretrained(tmp_path)
    assert "varlen" not in (tmp_path / "config.json").read_text()


def test_the_operator_of_torch_takes_what_we_give_it(model, packed):
    """As far as a CPU goes: shapes, dtypes and names, on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    tokens, heads, size = 48, 4, 72
    groups = heads if KERNEL_SHARES_KEYS else 1
    with FakeTensorMode():
        query = torch.empty(tokens, heads, size, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(tokens, heads // groups, size, device="cuda", dtype=torch.bfloat16)
        lengths = torch.empty(6, dtype=torch.int32, device="cuda")
        kwargs = {"scale": 0.1, "window_size": (-1, 0), **({"enable_gqa": True} if KERNEL_SHARES_KEYS else {})}
        mixed = varlen.varlen_attn(query, key, key, lengths, lengths, 12, 12, **kwargs)
    assert mixed.shape == query.shape


@needs_compiler
def test_compiled_layers_give_the_same_numbers_and_compile_once(model, ids):
    model.train()
    batch = {"input_ids": ids, "labels": ids}
    loss, expected = loss_and_gradients(model, batch)
    names = set(model.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(model)
    compiled, found = loss_and_gradients(model, batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one layer for all, and the loss
    assert set(model.state_dict()) == names
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=0)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4 * expected[name].abs().max().item())
