"""accelerate's big-model loading: layers on the disk or in another folder's memory, and the same logits."""

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from transformers import AutoConfig, AutoModelForCausalLM

PLACES = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 50000, (2, 16), generator=torch.Generator().manual_seed(1))


def placed(model) -> set[str]:
    return {str(place) for place in model.hf_device_map.values()}


@torch.no_grad()
@pytest.mark.parametrize("layout", ["grpo", "llama"])
def test_layers_on_the_disk_compute_the_same(work, pure, ids, tmp_path, layout):
    model = AutoModelForCausalLM.from_pretrained(
        work / "runs" / layout, device_map=PLACES, offload_folder=tmp_path, dtype=torch.float32
    )
    assert placed(model) == {"cpu", "disk"}
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    assert torch.equal(model(ids).logits, pure(ids).logits)
    greedy = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), pure.generate(ids, **greedy))


@torch.no_grad()
def test_a_plan_made_by_accelerate_splits_no_layer(model, tmp_path):
    """Less memory than the model has: accelerate goes by `_no_split_modules`."""
    model.save_pretrained(tmp_path / "model")
    ids = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(1))
    split = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": model.get_memory_footprint() * 4 // 5},
        offload_folder=tmp_path / "disk",
    )
    assert placed(split) == {"cpu", "disk"}
    layers = [name for name in split.hf_device_map if name.startswith("model.layers.")]
    assert len(layers) == 4
    assert all(name.count(".") == 2 for name in layers)
    assert torch.equal(split(ids).logits, model(ids).logits)


@torch.no_grad()
def test_an_empty_model_is_filled_from_a_checkpoint(work, pure, ids, tmp_path):
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work / "runs" / "grpo"))
    checkpoint = str(work / "runs" / "grpo" / "model.safetensors")
    model = load_checkpoint_and_dispatch(model, checkpoint, device_map=PLACES, offload_folder=tmp_path)
    assert torch.equal(model.eval()(ids).logits, pure(ids).logits)
