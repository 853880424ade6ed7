"""Compiled layers give the same numbers, and documents are separated by lengths as by a mask.

The flash kernel needs a GPU. Here a plain implementation replaces it, registered for the CPU under the same
operator, so that everything up to the kernel's own arguments is what a GPU run does.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from modeling_pure import PureConfig, PureForCausalLM, attention_pure, modeling_pure
from modeling_pure.attention_pure import expand_float32_heads
from modeling_pure.data.mixture import document_boundaries
from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.training import kernels
from modeling_pure.training.arguments import PureTrainingArguments
from modeling_pure.training.kernels import (
    ATTENTION_KERNELS,
    GROUPED_HEADS,
    choose_attention_kernel,
    compile_layers,
    describe_attention,
    separate_documents_by_lengths,
)
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
    """Replace the kernel by the reference; records its arguments."""
    calls = []

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
        calls.append({"documents": len(cu_seq_q) - 1, "longest": max_q, "window_size": window_size, "k": key})
        assert torch.equal(cu_seq_q, cu_seq_k)
        assert cu_seq_q.dtype == torch.int32
        return attend_by_document(query, key, value, cu_seq_q, scale)

    monkeypatch.setattr("modeling_pure.training.kernels.varlen_attn", kernel)
    return calls


@pytest.fixture
def packed() -> dict:
    """Two sequences with documents of unequal length, one of which ends with its sequence."""
    ids = torch.randint(8, 2048, (2, 24), generator=torch.Generator().manual_seed(1))
    ids[0, 4], ids[0, 15], ids[1, 11] = END, END, END
    return {"input_ids": ids, "labels": ids, "skip_logits": True, **document_boundaries(ids, END)}


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_lengths_separate_documents_like_a_mask(model, packed, plain_kernel):
    model.train()
    loss, expected = loss_and_gradients(model, packed)
    assert plain_kernel == []
    separate_documents_by_lengths(model)
    by_lengths, found = loss_and_gradients(model, packed)
    assert len(plain_kernel) == len(model.model.layers)
    assert plain_kernel[0]["documents"] == 5
    assert plain_kernel[0]["longest"] == 24
    assert plain_kernel[0]["k"].shape[1] == model.config.num_key_value_heads  # shared, not repeated
    assert plain_kernel[0]["window_size"] == (-1, 0)
    torch.testing.assert_close(by_lengths, loss, rtol=1e-6, atol=0)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5 * expected[name].abs().max().item())


def test_no_mask_is_built_if_lengths_are_given(model, packed, plain_kernel, monkeypatch):
    made, make = [], attention_pure.create_causal_mask

    def create_causal_mask(**kwargs):
        made.append(make(**kwargs))
        return made[-1]

    monkeypatch.setattr(attention_pure, "create_causal_mask", create_causal_mask)
    model.train()(**packed)
    assert len(made) == 1
    separate_documents_by_lengths(model)
    model(**packed)
    assert len(made) == 1
    assert len(plain_kernel) == len(model.model.layers)


def test_batches_without_lengths_use_plain_attention(model, ids, plain_kernel):
    """Questions are scored and answers generated with padding, during the same run."""
    padded = torch.ones_like(ids)
    padded[0, :7] = 0
    with torch.no_grad():
        expected = [model(ids).logits, model(ids, attention_mask=padded).logits]
        separate_documents_by_lengths(model)
        found = [model(ids).logits, model(ids, attention_mask=padded).logits]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert plain_kernel == []


def test_the_choice_of_kernel_is_not_saved_with_the_model(model, tmp_path):
    separate_documents_by_lengths(model)
    model.save_pretrained(tmp_path)
    assert "varlen" not in (tmp_path / "config.json").read_text()


def test_torchs_operator_accepts_our_arguments(monkeypatch):
    """As far as a CPU goes: shapes, dtypes and names, on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))  # torch 2.15 reads it
    tokens, heads, size = 48, 4, 72
    with FakeTensorMode():
        query = torch.empty(tokens, heads, size, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(tokens, 1, size, device="cuda", dtype=torch.bfloat16)
        lengths = torch.empty(6, dtype=torch.int32, device="cuda")
        mixed = varlen.varlen_attn(
            query, key, key, lengths, lengths, 12, 12, scale=0.1, window_size=(-1, 0), **GROUPED_HEADS
        )
    assert mixed.shape == query.shape


@needs_compiler
@pytest.mark.parametrize("qk_norm", [False, True])
def test_compiled_layers_give_the_same_numbers_and_compile_once(config, ids, qk_norm):
    config.qk_norm = qk_norm
    torch.manual_seed(0)
    model = PureForCausalLM(config).train()
    batch = {"input_ids": ids, "labels": ids, "skip_logits": True}
    loss, expected = loss_and_gradients(model, batch)
    names = set(model.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(model)
    compiled, found = loss_and_gradients(model, batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for all layers, one for the loss
    assert set(model.state_dict()) == names
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=0)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4 * expected[name].abs().max().item())


# ---- how often layers are compiled ----------------------------------------------------------------------------------


@pytest.fixture
def graphs():
    """Compile without a backend; returns the number of graphs so far, and fails at the recompile limit."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    at_the_limit = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    with at_the_limit, torch.compiler.set_stance("default", force_backend="eager"):
        yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.fixture
def deep_model() -> PureForCausalLM:
    """As many layers as the full model: fewer than the recompile limit of 8 would hide a recompilation per layer."""
    torch.manual_seed(0)
    sides = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 20, "vocab_size": 64}
    tokens = {"num_real_tokens": None, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return PureForCausalLM(PureConfig.from_preset("tiny", **sides, **tokens))


def test_twenty_layers_compile_once_for_each_kind_of_batch(deep_model, graphs):
    compile_layers(deep_model)

    def train(rows: int) -> None:
        ids = torch.randint(2, 64, (rows, 16))
        deep_model.train()(input_ids=ids, labels=ids, skip_logits=True).loss.backward()

    def validate(rows: int) -> None:
        ids = torch.randint(2, 64, (rows, 16))
        with torch.no_grad():
            assert deep_model.eval()(input_ids=ids, labels=ids, reduction="none").past_key_values is None

    train(4)
    assert graphs() == 2  # a layer and the loss
    validate(4)
    assert graphs() == 3  # a layer without gradients
    train(6)
    validate(6)
    assert graphs() == 6  # all three again, for any batch size
    for rows in (3, 5, 8):
        train(rows)
        validate(rows)
    assert graphs() == 6


def test_another_number_of_documents_compiles_nothing(model, graphs, monkeypatch):
    @torch.library.custom_op("pure_tests::varlen", mutates_args=())
    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor) -> torch.Tensor:
        return attend_by_document(query, key, value, cu_seq_q, None)

    @kernel.register_fake
    def _(query, key, value, cu_seq_q):
        return torch.empty_like(query)

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **kwargs):
        return kernel(query, key, value, cu_seq_q) * (max_q > 0)

    monkeypatch.setattr(kernels, "varlen_attn", varlen_attn)
    separate_documents_by_lengths(model)
    compile_layers(model)
    for ends in ((), (4,), (3, 11, 20), range(0, 24, 2)):
        ids = torch.randint(8, 2048, (2, 24))
        ids[0, list(ends)] = END
        with torch.no_grad():
            model(input_ids=ids, labels=ids, **document_boundaries(ids, END))
        assert graphs() == 1, f"recompiled for {len(ends)} document ends"


# ---- the kernel of sdpa ---------------------------------------------------------------------------------------------


@pytest.fixture
def torchs_own_order():
    """Restore torch's own order after a test."""
    yield
    choose_attention_kernel("auto")


def test_a_choice_of_kernel_lasts_until_the_next(torchs_own_order):
    before = torch._C._get_sdp_priority_order()
    tags = set()
    for kernel, first, allowed in (("cudnn", "CUDNN", True), ("flash", "FLASH", False), ("cudnn", "CUDNN", True)):
        choose_attention_kernel(kernel)
        order = [torch.nn.attention.SDPBackend(number).name for number in torch._C._get_sdp_priority_order()]
        assert order[0] == f"{first}_ATTENTION"
        assert torch.backends.cuda.cudnn_sdp_enabled() == allowed
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
        tags.add(torch.compiler.config.cache_key_tag)
    assert len(tags) == 2  # the two do not share compiled code on disk
    choose_attention_kernel("auto")
    assert torch._C._get_sdp_priority_order() == before
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_layers_are_recompiled_for_another_kernel(model, ids, graphs, torchs_own_order):
    for kernel, compiled in (("flash", 1), ("flash", 1), ("cudnn", 2)):
        choose_attention_kernel(kernel)
        for layer in model.model.layers:
            layer.compile()
        with torch.no_grad():
            model(ids, use_cache=False)
        assert graphs() == compiled


@pytest.mark.parametrize("arguments", [PureTrainingArguments, PureGRPOConfig])
def test_an_unknown_kernel_is_refused(arguments, tmp_path):
    assert arguments(output_dir=str(tmp_path), use_cpu=True).attention_kernel in ATTENTION_KERNELS
    with pytest.raises(InputError, match=r"^attention_kernel: .*'flash'.*'fast'$"):
        arguments(output_dir=str(tmp_path), use_cpu=True, attention_kernel="fast")


def test_the_kernel_in_use_is_what_sdpa_selects(model, torchs_own_order):
    assert describe_attention(model, torch.device("cpu"), bf16=False) == "sdpa, flash_attention"  # on a CPU
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert describe_attention(model, torch.device("cpu"), bf16=False) == "sdpa, math"
    model.set_attn_implementation("eager")
    assert describe_attention(model, torch.device("cpu"), bf16=False) == "eager"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_on_a_gpu_expands_key_heads(dtype, autocast, masked):
    """The one fused kernel for float32 does not share them. On tensors without data: a CPU has no such kernel."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        shapes = [(2, heads, 8, 72) for heads in (16, 4, 4)]
        # As the rotary embedding returns them: under autocast to bf16, only values are bf16.
        dtypes = (dtype, dtype, torch.bfloat16 if autocast else dtype)
        query, key, value = (torch.empty(s, dtype=d, device="cuda") for s, d in zip(shapes, dtypes, strict=True))
        found = expand_float32_heads(query, key, value, torch.ones(8, 8) if masked else None)
    expands = dtype == torch.float32 and not autocast and not masked
    assert [states.shape[1] for states in found] == [16 if expands else 4] * 2


def test_under_autocast_values_have_the_dtype_of_attention(model, ids, monkeypatch):
    def note(query, key, value, mask):
        found.append(value.dtype)
        return key, value

    found = []
    monkeypatch.setattr(modeling_pure, "expand_float32_heads", note)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(ids)
    assert set(found) == {torch.bfloat16}
    assert len(found) == len(model.model.layers)


@pytest.mark.parametrize("implementation", ["sdpa", kernels.VARLEN])
def test_expanded_heads_give_the_same_logits(model, ids, implementation, monkeypatch):
    def as_on_a_gpu(query, key, value, mask):
        expanded.append(query.shape)
        return expand_float32_heads(SimpleNamespace(is_cuda=True, shape=query.shape), key, value, mask)

    expanded, expected = [], model(ids).logits
    if implementation == kernels.VARLEN:
        separate_documents_by_lengths(model)
    for module in (kernels, modeling_pure):
        monkeypatch.setattr(module, "expand_float32_heads", as_on_a_gpu)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
    assert len(expanded) == len(model.model.layers)
