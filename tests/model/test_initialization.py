"""Initial weights, with a scale for every leaf, and exact rotary frequencies."""

import math

import pytest
import torch

from modeling_pure import PureConfig, PureForCausalLM


def assert_scales(model: PureForCausalLM) -> None:
    config = model.config
    residual = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if name == "lm_head.weight":
            expected = config.head_initializer_range
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            expected = residual
        else:
            expected = config.initializer_range
        # A sample of n values has a relative standard error of 1/sqrt(2n) in its standard deviation.
        tolerance = 5 / math.sqrt(2 * weight.numel())
        assert weight.std().item() == pytest.approx(expected, rel=tolerance), name
        assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel()), name


def test_every_leaf_has_its_scale():
    torch.manual_seed(0)
    assert_scales(PureForCausalLM(PureConfig.from_preset("tiny")))


def test_scales_follow_the_config():
    torch.manual_seed(0)
    fields = {"initializer_range": 0.05, "head_initializer_range": 0.3, "num_hidden_layers": 2}
    assert_scales(PureForCausalLM(PureConfig.from_preset("tiny", **fields)))


def test_weights_missing_from_a_checkpoint_start_like_new_ones_and_the_others_are_kept(tmp_path):
    torch.manual_seed(0)
    saved = PureForCausalLM(PureConfig.from_preset("tiny"))
    state = saved.state_dict()
    dropped = {"lm_head.weight", "model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.up_proj.weight"}
    saved.save_pretrained(tmp_path, state_dict={key: value for key, value in state.items() if key not in dropped})
    loaded = PureForCausalLM.from_pretrained(tmp_path)
    assert_scales(loaded)
    changed = {key for key, value in loaded.state_dict().items() if not torch.equal(value, state[key])}
    assert changed == dropped


@pytest.mark.parametrize("shape", [{"hidden_size": 288, "intermediate_size": 352, "num_hidden_layers": 2}, {}])
def test_first_loss_is_the_logarithm_of_the_vocabulary(shape):
    """ln(50304) = 10.826. With the usual 0.02 in the head it would be 11.05 at full width."""
    torch.manual_seed(0)
    if shape:
        shape = {**shape, "num_attention_heads": 4, "num_key_value_heads": 1}
    model = PureForCausalLM(PureConfig(**shape))
    ids = torch.randint(0, 50258, (2, 64))
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert 10.80 < loss < 10.86


def test_rotary_frequencies_stay_exact_in_half_precision(model, config, ids, tmp_path):
    exact = 1.0 / (10000.0 ** (torch.arange(0, config.head_dim, 2) / config.head_dim))
    model.save_pretrained(tmp_path)
    loaded = PureForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    for name, cast in {
        "from_pretrained": loaded,
        "bfloat16": model.to(torch.bfloat16),
        "half": PureForCausalLM(config).half(),
        "there and back": PureForCausalLM(config).to(torch.bfloat16).float(),
    }.items():
        assert torch.equal(cast.model.rotary_emb.inv_freq, exact), name
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert model.to("meta").model.rotary_emb.inv_freq.device.type == "meta"


def test_end_of_text_embedding_learns_even_when_it_is_the_pad_token(ids):
    """`nn.Embedding(padding_idx=pad)` would zero and freeze it."""
    torch.manual_seed(0)
    model = PureForCausalLM(PureConfig.from_preset("tiny", pad_token_id=0))
    ids[:, 5] = 0
    model(ids, labels=ids).loss.backward()
    embedding = model.model.embed_tokens.weight
    assert embedding[0].abs().sum() > 0
    assert embedding.grad[0].abs().sum() > 0
