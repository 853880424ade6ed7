"""Recomputation, compilation and adapters change only the cost of training."""

import pytest
import torch
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from modeling_pure import PureForCausalLM
from tests.conftest import needs_compiler
from tests.model.twins import make_pair


def loss_and_gradients(model, ids, forward=None, **inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = (model if forward is None else forward)(ids, labels=ids, **inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(model, ids, use_reentrant, packed):
    model.train()
    inputs = {"position_ids": torch.cat([torch.arange(9), torch.arange(15)])[None].repeat(2, 1)} if packed else {}
    plain_loss, plain = loss_and_gradients(model, ids, **inputs)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    loss, gradients = loss_and_gradients(model, ids, **inputs)
    assert len(calls) == 2  # recomputed in the backward pass, so checkpointing was on
    assert torch.equal(loss, plain_loss)
    assert [name for name in plain if not torch.equal(plain[name], gradients[name])] == []


def assert_close_to_plain(model, ids, compiled) -> None:
    plain_loss, plain = loss_and_gradients(model, ids)
    loss, gradients = loss_and_gradients(model, ids, forward=compiled)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    for name, expected in plain.items():
        torch.testing.assert_close(gradients[name], expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_full_graph_of_the_whole_model_forward_and_backward(model, ids):
    model.train()
    assert_close_to_plain(model, ids, torch.compile(model, fullgraph=True, backend="aot_eager"))


@needs_compiler
def test_layers_compiled_to_kernels_forward_and_backward(model, ids):
    """Regional compilation, as in training, of one layer, whose kernels take half a minute to build."""
    model.train()
    model.model.layers = model.model.layers[:1]
    layer = model.model.layers[0]
    compiled = torch.compile(layer, fullgraph=True)

    def forward(*args, **kwargs):
        model.model.layers[0] = compiled
        try:
            return model(*args, **kwargs)
        finally:
            model.model.layers[0] = layer

    torch._dynamo.utils.counters.clear()
    assert_close_to_plain(model, ids, forward)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("packed", [True, False])
def test_compiles_to_one_graph_with_a_mask_only_when_packed(model, ids, packed):
    """With a mask, sdpa would not use its flash kernel in compiled training steps."""
    masks, graphs = [], []

    def backend(graph, example_inputs):
        graphs.append(graph)
        attention = [node for node in graph.graph.nodes if node.target is functional.scaled_dot_product_attention]
        masks.extend(node.kwargs["attn_mask"] for node in attention)
        return graph

    model.train()
    inputs = {"position_ids": torch.cat([torch.arange(9), torch.arange(15)])[None].repeat(2, 1)} if packed else {}
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(ids, **inputs).logits, model(ids, **inputs).logits, rtol=0, atol=2e-5)
    assert len(graphs) == 1
    assert len(masks) == len(model.model.layers)
    assert all((mask is not None) == packed for mask in masks)


def test_a_loss_makes_no_cache_by_default(model, ids):
    with torch.no_grad():
        assert model(ids, labels=ids).past_key_values is None
        assert model(ids, labels=ids, use_cache=True).past_key_values is not None
        assert model(ids).past_key_values is not None


def test_norms_keep_the_dtype_of_the_residual_stream_under_any_autocast(model, ids):
    """From torch 2.12 on, CUDA autocast runs rms_norm in float32; this test registers the same rule for the CPU."""
    casts, states = [], []

    def in_float32(states, *args, **kwargs):
        casts.append(1)
        with torch.autocast("cpu", enabled=False):
            return torch.rms_norm(states.float(), *args, **kwargs)

    with torch.library._scoped_library("aten", "IMPL") as rules, torch.autocast("cpu", torch.bfloat16):
        rules.impl("rms_norm", in_float32, "AutocastCPU")
        assert torch.rms_norm(torch.ones(2, 4, dtype=torch.bfloat16), (4,)).dtype == torch.float32
        assert casts == [1]
        for module in model.modules():
            if type(module).__name__ == "PureRMSNorm":
                module.register_forward_hook(lambda _, given, out: states.append((given[0].dtype, out.dtype)))
        hidden = model.model(ids).last_hidden_state
    assert hidden.dtype == torch.bfloat16
    assert set(states) == {(torch.bfloat16, torch.bfloat16)}
    assert casts == [1]


def test_lora_trains_reloads_and_merges(model, ids, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    # peft has no default targets for this model type; "all-linear" finds the seven projections and leaves the head.
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert {name.rsplit(".", 1)[-1] for name in adapted.targeted_module_names} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    adapted.save_pretrained(tmp_path / "adapter")

    with torch.no_grad():
        trained = adapted.eval()(ids).logits
        base = PureForCausalLM.from_pretrained(tmp_path / "base").eval()
        untrained = base(ids).logits
        reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.equal(reloaded(ids).logits, trained)
        merged = reloaded.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, trained, rtol=0, atol=1e-3)
    assert isinstance(merged, PureForCausalLM)
    assert (untrained - trained).abs().max() > 0.1


def test_label_smoothing_of_the_stock_trainer_equals_llama(tmp_path):
    """With label smoothing, Trainer shifts labels only for classes in transformers' table of causal models."""
    losses = []
    for model in make_pair("sdpa"):
        arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.2, use_cpu=True, report_to="none")
        ids = torch.randint(2, 512, (2, 40), generator=torch.Generator().manual_seed(1))
        losses.append(Trainer(model, arguments).compute_loss(model.train(), {"input_ids": ids, "labels": ids}))
    assert torch.equal(*losses)


def test_torchscript_export_supports_every_operation(model, ids, tmp_path, monkeypatch):
    """Only writing the file needs the onnx package."""
    monkeypatch.setattr("torch.onnx._internal.torchscript_exporter.onnx_proto_utils._add_onnxscript_fn", keep_bytes)
    inputs = {"attention_mask": torch.ones_like(ids), "use_cache": False, "return_dict": False}
    torch.onnx.export(model, (ids,), tmp_path / "model.onnx", kwargs=inputs, dynamo=False)
    assert (tmp_path / "model.onnx").stat().st_size > 4 * model.num_parameters()


def keep_bytes(model_bytes: bytes, custom_opsets: object) -> bytes:
    return model_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exported_norm_is_equal(model, monkeypatch, dtype):
    states = torch.randn(2, 8, 128).to(dtype)
    expected = model.model.norm(states)
    monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
    torch.testing.assert_close(model.model.norm(states), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_attributes_that_trl_and_accelerate_read(model, ids):
    assert model.base_model is model.model
    assert model.get_output_embeddings() is model.lm_head
    assert model.lm_head.bias is None
    assert model.generation_config is not None
    assert not model.config.tie_word_embeddings
    layers = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= layers
    with torch.no_grad():
        states = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        assert torch.equal(model.lm_head(states.last_hidden_state), model(ids).logits)
    assert model.loss_type == "ForCausalLM"  # tells Trainer that the model shifts labels
