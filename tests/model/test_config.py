"""Shapes, their validation, and what goes into config.json."""

import json

import pytest
import torch

from modeling_pure import PRESETS, PureConfig, PureForCausalLM
from modeling_pure.configuration_pure import AUTO_MAP, HUB_FILES


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("tiny", 1_261_568), ("small", 29_982_720), ("medium", 124_600_320), ("medium-large", 401_227_776)],
)
def test_preset_has_its_size(preset, parameters):
    with torch.device("meta"):
        model = PureForCausalLM(PureConfig.from_preset(preset))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.model.layers[0].parameters()) == sum(
        p.numel() for p in model.model.layers[-1].parameters()
    )


def test_the_defaults_are_medium_large_by_the_published_sum():
    with torch.device("meta"):
        model = PureForCausalLM(PureConfig())
    assert sum(p.numel() for p in model.model.layers[0].parameters()) == 14_266_368
    assert sum(p.numel() for p in model.parameters()) == 2 * 50_304 * 1_152 + 20 * 14_266_368
    assert not [name for name, _ in model.named_parameters() if "norm" in name or "bias" in name]
    assert PureConfig().to_dict() == PureConfig.from_preset("medium-large").to_dict()
    assert PureConfig().head_dim == 72
    assert PureConfig().rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_preset_overrides_and_unknown_preset():
    assert PureConfig.from_preset("small", num_hidden_layers=2).num_hidden_layers == 2
    with pytest.raises(ValueError, match=f"'huge'.*{', '.join(PRESETS)}"):
        PureConfig.from_preset("huge")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 3}, r"num_key_value_heads \(3\)"),
        ({"num_key_value_heads": 0}, r"num_key_value_heads \(0\)"),
        ({"num_attention_heads": 7}, r"hidden_size \(1152\) .*num_attention_heads \(7\)"),
        ({"num_attention_heads": 0}, r"num_attention_heads .*\b0\b"),
        ({"head_dim": 64}, r"hidden_size \(1152\) .*head_dim \(64\)"),
        ({"hidden_size": 45, "num_attention_heads": 5, "num_key_value_heads": 1}, r"\bhead_dim \(9\)"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers .*\b0\b"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        ({"vocab_size": 2048}, "num_real_tokens .50258."),
        ({"vocab_size": 2048, "num_real_tokens": None}, r"bos_token_id \(50256\) .*\b2048\b"),
        ({"eos_token_id": [50256, 50300]}, "eos_token_id .50300."),
        ({"pad_token_id": 50303}, "pad_token_id .50303."),
    ],
)
def test_impossible_shapes_are_refused_with_the_reason(fields, message):
    # Depending on its version huggingface_hub wraps the ValueError of a validator in one of its own kind.
    with pytest.raises(Exception, match=message):
        PureConfig(**fields)


def test_wrong_types_are_refused():
    with pytest.raises(Exception, match="hidden_size"):
        PureConfig(hidden_size="1152")


def test_auto_map_always_names_all_three_classes():
    from_hub = {"AutoModel": "someone/repo--modeling_pure.PureModel", "AutoModelForOther": "other.Other"}
    assert PureConfig().auto_map == AUTO_MAP
    assert PureConfig(auto_map=from_hub).auto_map == {**AUTO_MAP, "AutoModelForOther": "other.Other"}
    assert set(AUTO_MAP) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


def test_config_json_round_trip_and_code_beside_it(tmp_path):
    config = PureConfig.from_preset("tiny", vocab_size=1000, num_real_tokens=990, eos_token_id=[0, 5])
    config.auto_map["AutoModelForCausalLM"] = "_fsdp_init.FSDPPureForCausalLM"  # what FSDP2 makes transformers write
    config.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", *HUB_FILES])
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert PureConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "suppressed"),
    [
        ({}, [1]),
        ({"vocab_size": 2050, "num_real_tokens": 2047}, [1, 2047, 2048, 2049]),
        ({"pad_token_id": 0}, []),  # pad = eos: suppressing it would make every answer endless
        ({"pad_token_id": 3, "eos_token_id": [0, 3]}, []),
        ({"pad_token_id": None}, []),
    ],
)
def test_suppressed_tokens_follow_the_tokenizer(fields, suppressed):
    assert PureConfig.from_preset("tiny", **fields).suppressed_tokens == suppressed


def test_suppressed_tokens_of_gpt2_are_the_pad_token_and_every_spare_row():
    assert PureConfig().suppressed_tokens == list(range(50257, 50304))
