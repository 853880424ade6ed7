"""Shapes, their validation, and what goes into config.json."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

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


def test_the_default_config_has_the_published_parameter_count():
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
        ({"vocab_size": 2048, "num_real_tokens": 50258}, "num_real_tokens .50258."),
        ({"vocab_size": 2048, "bos_token_id": 50256}, r"bos_token_id \(50256\) .*\b2048\b"),
        ({"max_position_embeddings": 0}, r"max_position_embeddings .*\b0\b"),
        ({"rms_norm_eps": -1.0}, r"rms_norm_eps .*-1\.0"),
        ({"initializer_range": float("nan")}, "initializer_range .*nan"),
        ({"hidden_act": "swish-glue"}, "hidden_act 'swish-glue'"),
        ({"eos_token_id": [50256, 50300]}, "eos_token_id .50300."),
        ({"pad_token_id": 50303}, "pad_token_id .50303."),
    ],
)
def test_impossible_shapes_are_refused_with_the_reason(fields, message):
    # Some versions of huggingface_hub wrap the ValueError of a validator in their own error.
    with pytest.raises(Exception, match=message):
        PureConfig(**fields)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": "4"}, "factor .*'4'"),
        ({"rope_type": "dynamic", "factor": 0.5}, r"factor .*\b0\.5\b"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": "1"}, "yarn"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 36, "long_factor": [1.0] * 35}, "longrope.*35"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 36, "long_factor": [0.0] * 36}, "longrope"),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.5}, "proportional"),
        ({"rope_type": "yarm", "factor": 2.0}, "yarm"),
        ({"factor": 2.0}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_typ": "yarn"}, "rope_typ"),
        ({"full_attention": {"rope_type": "yarn", "factor": 2.0}}, "full_attention"),
        ({"rope_theta": "10000"}, "rope_theta .*'10000'"),
        ({"rope_theta": 0}, r"rope_theta .*\b0\b"),
    ],
)
def test_rope_parameters_that_cannot_work_are_refused(rope, message):
    """Transformers only warns about most of these."""
    with pytest.raises(Exception, match=f"rope_parameters: .*{message}"):
        PureConfig(rope_parameters=rope)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": "x", "factor": 2.0}}, "rope_theta"),
        ({"rope_scaling": {"type": "yarm", "factor": 2.0}}, "yarm"),
        ({"vocab_size": 60}, "pad_token_id"),
        ({"eos_token_id": [0, 64]}, "eos_token_id"),
        ({"num_real_tokens": 65}, "num_real_tokens"),
    ],
)
def test_every_way_to_make_a_configuration_validates_it(tmp_path, fields, message):
    config = PureConfig.from_preset("tiny", vocab_size=64, pad_token_id=63)
    PureForCausalLM(config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())

    def by_file() -> None:
        (tmp_path / "config.json").write_text(json.dumps({**stored, **fields}))
        AutoModelForCausalLM.from_pretrained(tmp_path)

    def by_attribute() -> None:
        for name, value in fields.items():
            setattr(config, name, value)
        PureForCausalLM(config)

    ways = (
        lambda: PureConfig.from_dict(stored, **fields),
        lambda: PureConfig.from_pretrained(tmp_path, **fields),
        lambda: AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **fields),
        lambda: PureForCausalLM.from_pretrained(tmp_path, **fields),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path, **fields),
        by_file,
        by_attribute,
    )
    for way in ways:
        with pytest.raises(Exception, match=message):
            way()


def test_from_pretrained_overrides_apply_and_keep_rope_theta(tmp_path):
    PureConfig.from_preset("tiny", rope_parameters={"rope_theta": 5000.0}).save_pretrained(tmp_path)
    expected = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    for name in ("rope_parameters", "rope_scaling"):
        config, unused = PureConfig.from_pretrained(
            tmp_path, return_unused_kwargs=True, use_cache=False, other=1, **{name: {**expected, "rope_theta": 5000.0}}
        )
        assert (config.rope_parameters, config.use_cache, unused) == (expected, False, {"other": 1})
        config = PureConfig.from_pretrained(tmp_path, **{name: {"rope_type": "linear", "factor": 2.0}})
        assert config.rope_parameters == expected
    longer = {"rope_type": "yarn", "factor": 4.0}
    config = PureConfig.from_pretrained(tmp_path, rope_parameters=longer, max_position_embeddings=2048)
    trained = {"rope_theta": 5000.0, "original_max_position_embeddings": 512}
    assert (config.rope_parameters, config.max_position_embeddings) == ({**longer, **trained}, 2048)
    assert longer == {"rope_type": "yarn", "factor": 4.0}
    config.save_pretrained(tmp_path)
    config = PureConfig.from_pretrained(tmp_path, rope_parameters={**longer, "factor": 2.0, "truncate": False})
    assert config.rope_parameters == {**longer, **trained, "factor": 2.0, "truncate": False}
    alone = PureConfig.from_pretrained(tmp_path, rope_theta=9.0)
    assert alone.rope_parameters["rope_theta"] == 9.0
    assert not hasattr(alone, "rope_theta")
    other = PureConfig.from_pretrained(tmp_path, rope_parameters={"rope_theta": 7.0})
    assert other.rope_parameters == {"rope_type": "default", "rope_theta": 7.0}


def test_wrong_types_are_refused():
    with pytest.raises(Exception, match="hidden_size"):
        PureConfig(hidden_size="1152")


@pytest.mark.parametrize("vocab_size", [1, 99, 50_000, 60_000])
def test_all_tokens_of_another_vocabulary_are_real(tmp_path, vocab_size):
    config = PureConfig(vocab_size=vocab_size)
    assert (config.num_real_tokens, config.real_tokens) == (None, vocab_size)
    # GPT-2's special token ids are kept only if the vocabulary is large enough.
    present = vocab_size > 50_257
    assert (config.eos_token_id, config.pad_token_id) == ((50_256, 50_257) if present else (None, None))
    assert config.suppressed_tokens == ([50_257] if present else [])
    assert PureConfig(**config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    assert PureConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_explicit_values_override_defaults(tmp_path):
    config = PureConfig(vocab_size=60_000, num_real_tokens=50_258)
    assert config.suppressed_tokens == [50_257, *range(50_258, 60_000)]
    config.save_pretrained(tmp_path)
    assert PureConfig.from_pretrained(tmp_path).num_real_tokens == 50_258
    assert PureConfig(num_real_tokens=None).real_tokens == 50_304
    assert {type(getattr(PureConfig(), name)) for name in ("num_real_tokens", "eos_token_id")} == {int}


def test_auto_map_always_names_all_three_classes():
    from_hub = {"AutoModel": "someone/repo--modeling_pure.PureModel", "AutoModelForOther": "other.Other"}
    assert PureConfig().auto_map == AUTO_MAP
    assert PureConfig(auto_map=from_hub).auto_map == {**AUTO_MAP, "AutoModelForOther": "other.Other"}
    assert set(AUTO_MAP) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


def test_config_json_round_trip_with_its_code(tmp_path):
    config = PureConfig.from_preset("tiny", vocab_size=1000, num_real_tokens=990, eos_token_id=[0, 5])
    config.auto_map["AutoModelForCausalLM"] = "_fsdp_init.FSDPPureForCausalLM"  # written by transformers under FSDP2
    config.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", *HUB_FILES])
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert PureConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "suppressed"),
    [
        ({}, [1]),
        ({"vocab_size": 2050, "num_real_tokens": 2047}, [1, 2047, 2048, 2049]),
        ({"pad_token_id": 0}, []),  # pad = eos: if suppressed, no answer would end
        ({"pad_token_id": 3, "eos_token_id": [0, 3]}, []),
        ({"pad_token_id": None}, []),
    ],
)
def test_suppressed_tokens_follow_the_tokenizer(fields, suppressed):
    assert PureConfig.from_preset("tiny", **fields).suppressed_tokens == suppressed


def test_suppressed_tokens_of_gpt2_are_the_pad_token_and_every_spare_row():
    assert PureConfig().suppressed_tokens == list(range(50257, 50304))
