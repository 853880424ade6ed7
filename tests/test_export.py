"""Pure as Llama and back: equal to the last bit, verified before renaming, and refused with one line."""

import errno
import json
import os
import re
import resource
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling_pure import PureConfig, PureForCausalLM, export
from modeling_pure.console import DISCLAIMER
from modeling_pure.errors import run_script
from modeling_pure.model_card import add_evaluation, card_blocks, write_model_card
from tests.cards import evaluation
from tests.conftest import numbers_in
from tests.gpt2_vocabulary import write_gpt2_tokenizer

# The real head shape (72 wide, four query heads to one key head), and spare rows in the vocabulary.
SHAPE = {
    "vocab_size": 512,
    "num_real_tokens": 401,
    "hidden_size": 288,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 400,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "rms_norm_eps": 1e-6,
}
LLAMA_SHAPE = {name: value for name, value in SHAPE.items() if name != "num_real_tokens"}


def save_pure(folder: Path, dtype: torch.dtype = torch.float32, **changes) -> PureForCausalLM:
    """A Pure model whose logits differ, saved to a folder."""
    torch.manual_seed(0)
    config = PureConfig(**{**SHAPE, "initializer_range": 0.1, "head_initializer_range": 0.1, **changes})
    model = PureForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder)
    return model


def save_llama(folder: Path, **changes) -> LlamaForCausalLM:
    """A Llama in Pure's shape, with changes, saved to a folder."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA_SHAPE, "initializer_range": 0.1, **changes})).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def checkpoint(tmp_path, tokenizer) -> Path:
    """A checkpoint as a run leaves it: weights, tokenizer, card with curves and an evaluation."""
    folder = tmp_path / "pure"
    model = save_pure(folder)
    tokenizer.save_pretrained(folder)
    write_model_card(str(folder), "Pure, pretrained", model.config, {"Pretraining": {"tokens of c4": "400"}}, [])
    add_evaluation(str(folder), evaluation())
    (folder / "curves.png").write_bytes(b"png")
    return folder


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the command in this process; returns its stdout and stderr."""

    def convert(*arguments, expect: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_script(export.main, "pure export")
        captured = capsys.readouterr()
        assert stop.value.code == expect, captured.err[-3000:]
        return captured

    return convert


def refused(convert, message: str, *arguments, code: int = 2) -> None:
    """The command fails with one matching line, and leaves neither OUT nor other files in its folder."""
    out = Path(arguments[-1])
    before = sorted(out.parent.iterdir())
    error = convert(*arguments, expect=code)[1]
    (line,) = [line for line in error.splitlines() if "error: " in line]
    assert re.match(rf"pure export: error: {message}", line), line
    assert "Traceback" not in error
    assert sorted(out.parent.iterdir()) == before


def ids() -> torch.Tensor:
    """Compare more and other tokens than the command does."""
    return torch.randint(0, 401, (3, 200), generator=torch.Generator().manual_seed(5))


def test_the_llama_has_the_logits_of_pure_and_reports_it(convert, checkpoint, tmp_path, tokenizer):
    out = convert("--to", "llama", checkpoint, tmp_path / "llama").out
    assert DISCLAIMER in out
    assert "LlamaForCausalLM" in out
    assert {"65,536", "1,440", "401"} <= {*numbers_in(out)}  # logits that are equal, norm weights, tokens
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert "auto_map" not in config
    assert not list((tmp_path / "llama").glob("*.py"))

    pure, llama = (AutoModelForCausalLM.from_pretrained(one).eval() for one in (checkpoint, tmp_path / "llama"))
    assert type(llama) is LlamaForCausalLM
    assert llama.dtype == torch.float32
    with torch.no_grad():
        ours, theirs = pure(ids()).logits, llama(ids()).logits
    assert ours.std() > 0.5
    assert torch.equal(ours, theirs)
    assert llama.generation_config.suppress_tokens == pure.generation_config.suppress_tokens == [*range(400, 512)]
    prompts = ids()[:, :20]
    greedy = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(pure.generate(prompts, **greedy), llama.generate(prompts, **greedy))
    text = "Question: What is given?\nA. aspirin\nAnswer:"
    assert AutoTokenizer.from_pretrained(tmp_path / "llama")(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_is_equal_too(convert, tmp_path, stored):
    save_pure(tmp_path / "pure", stored)
    option = [] if stored == torch.bfloat16 else ["--dtype", "bfloat16"]
    out = convert("--to", "llama", tmp_path / "pure", tmp_path / "llama", *option).out
    assert bool(re.search(r"\bfloat32\b.*\bbfloat16\b", out)) == bool(option)
    assert all(value.dtype == torch.bfloat16 for value in load_file(tmp_path / "llama" / "model.safetensors").values())
    pure, llama = (
        AutoModelForCausalLM.from_pretrained(tmp_path / one, dtype=torch.bfloat16).eval() for one in ("pure", "llama")
    )
    with torch.no_grad():
        assert torch.equal(pure(ids()).logits, llama(ids()).logits)
    card = (tmp_path / "llama" / "README.md").read_text()
    assert bool(re.search(r"\bfloat32\b.*\bbfloat16\b", card)) == bool(option)


def test_a_round_trip_changes_nothing(convert, checkpoint, tmp_path):
    convert("--to", "llama", checkpoint, tmp_path / "llama")
    (tmp_path / "again").mkdir()  # an empty folder is allowed
    convert("--to", "pure", tmp_path / "llama", tmp_path / "again")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len({file.stat().st_mode for file in (tmp_path / "again").iterdir()}) == 1  # also of the weights
    names = {file.name for file in checkpoint.iterdir()}
    assert names == {file.name for file in (tmp_path / "again").iterdir()}
    for name in names - {"model.safetensors"}:  # its head may list the weights in another order
        assert (checkpoint / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("scaled", [False, True])
def test_normalised_queries_and_keys_go_to_qwen3_and_back(convert, tmp_path, scaled):
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    if scaled:
        rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    save_pure(tmp_path / "pure", qk_norm=True, rope_parameters=rope)
    assert "1,728" in numbers_in(convert("--to", "qwen3", tmp_path / "pure", tmp_path / "qwen3").out)  # weights of one
    convert("--to", "pure", tmp_path / "qwen3", tmp_path / "again")
    names = ("pure", "qwen3", "again")
    pure, qwen3, again = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in names)
    assert type(qwen3) is Qwen3ForCausalLM
    with torch.no_grad():
        assert torch.equal(pure(ids()).logits, qwen3(ids()).logits)
        assert torch.equal(pure(ids()).logits, again(ids()).logits)
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "pure" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert not hasattr(qwen3.config, "qk_norm")
    assert "Qwen3ForCausalLM" in (tmp_path / "qwen3" / "README.md").read_text()


def test_the_wrong_layout_is_refused(convert, checkpoint, tmp_path):
    refused(convert, "--to: .*qwen3.*llama", "--to", "qwen3", checkpoint, tmp_path / "out")
    save_pure(tmp_path / "normed", qk_norm=True)
    refused(convert, "--to: .*llama.*qwen3", "--to", "llama", tmp_path / "normed", tmp_path / "out")
    config = Qwen3Config(**LLAMA_SHAPE, head_dim=72, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "window")
    refused(convert, "CHECKPOINT: use_sliding_window ", "--to", "pure", tmp_path / "window", tmp_path / "out")


ROPE = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "short_factor": [1.0] * 36,
        "long_factor": [2.0 + i for i in range(36)],
        "original_max_position_embeddings": 64,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("rope_type", ROPE)
def test_scaled_rope_survives_a_round_trip(convert, tmp_path, rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 5000.0, **ROPE[rope_type]}
    save_pure(tmp_path / "pure", rope_parameters=rope)
    convert("--to", "llama", tmp_path / "pure", tmp_path / "llama")
    convert("--to", "pure", tmp_path / "llama", tmp_path / "again")
    names = ("pure", "llama", "again")
    assert [AutoConfig.from_pretrained(tmp_path / one).rope_parameters for one in names] == [rope] * 3
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / one).eval() for one in names]
    long = torch.randint(0, 401, (1, 300), generator=torch.Generator().manual_seed(5))  # of 256 positions
    with torch.no_grad():
        for ids in (long[:, :60], long):
            pure, llama, again = (model(ids).logits for model in models)
            assert torch.equal(pure, llama)
            assert torch.equal(pure, again)


def test_a_rope_that_differs_beyond_the_context_only_is_noticed(convert, tmp_path, monkeypatch):
    save_pure(tmp_path / "pure", rope_parameters={"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 4.0})
    convert_config = export.convert_config

    def wrong(config, to):
        converted = convert_config(config, to)
        converted.rope_parameters["factor"] = 2.0
        return converted

    monkeypatch.setattr(export, "convert_config", wrong)
    refused(convert, r"OUT: .*\blogits\b", "--to", "llama", tmp_path / "pure", tmp_path / "out", code=3)


def test_shards_are_read(convert, tmp_path):
    save_pure(tmp_path / "pure").save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    convert("--to", "llama", tmp_path / "shards", tmp_path / "llama")
    expected = load_file(tmp_path / "pure" / "model.safetensors")
    found = load_file(tmp_path / "llama" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    next((tmp_path / "shards").glob("model-00002*")).unlink()
    refused(convert, "CHECKPOINT: .*model-00002", "--to", "llama", tmp_path / "shards", tmp_path / "other")


def test_gpt2s_vocabulary_gives_the_same_ids_for_a_llama(convert, tmp_path):
    """Transformers also uses the model type to choose a tokenizer class."""
    save_pure(tmp_path / "pure", vocab_size=50304, num_real_tokens=50258, pad_token_id=50257, num_hidden_layers=1)
    write_gpt2_tokenizer(str(tmp_path / "pure"))
    out = convert("--to", "llama", tmp_path / "pure", tmp_path / "llama").out
    assert "50,257" in numbers_in(out)
    texts = ["Question: A 21-year-old's  naïve\n\n\tβ-blocker?\nA. 5 mg\nAnswer:", " B. <|endoftext|>", "  "]
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / one)(texts).input_ids for one in ("pure", "llama"))
    assert ours == theirs
    assert ours[1] == [347, 13, 220, 50256]


def test_the_card_keeps_evaluations_and_loads_as_llama(convert, checkpoint, tmp_path):
    convert("--to", "llama", checkpoint, tmp_path / "llama")
    card, before = (ModelCard.load(folder / "README.md") for folder in (tmp_path / "llama", checkpoint))
    for kind in ("training", "evaluation"):
        assert card_blocks(card.text, kind) == card_blocks(before.text, kind) != {}
    assert card.data.to_dict() == before.data.to_dict()
    assert card.data.license == "apache-2.0"
    assert "trust_remote_code" in before.text
    assert "trust_remote_code" not in card.text
    assert DISCLAIMER in card.text
    assert "| model_type | llama |" in card.text
    assert (tmp_path / "llama" / "curves.png").is_file()
    # The commands in the card.
    lines = card.text.split("```python\n")[1].split("```")[0].replace("PATH", str(tmp_path / "llama"))
    found: dict = {}
    exec(lines, found)
    assert type(found["model"]) is LlamaForCausalLM
    assert len(found["tokenizer"]) == 401


def test_a_checkpoint_without_a_card_of_ours_gets_one(convert, tmp_path):
    save_pure(tmp_path / "pure")
    (tmp_path / "pure" / "README.md").write_text("# Mine\n")
    convert("--to", "llama", tmp_path / "pure", tmp_path / "llama")
    text = (tmp_path / "llama" / "README.md").read_text()
    assert "# Mine" not in text
    assert card_blocks(text, "training") == {}
    assert DISCLAIMER in text
    assert "trust_remote_code" not in text


def test_a_hub_id_is_read_from_the_cache_at_its_revision(convert, tmp_path, monkeypatch):
    """A Hub cache with two commits, of which `main` is the second."""
    repo = tmp_path / "hub" / "models--owner--pure"
    for commit, seed_of_head in (("a" * 40, 0.1), ("b" * 40, 0.2)):
        save_pure(repo / "snapshots" / commit, head_initializer_range=seed_of_head)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("b" * 40)
    (repo / "refs" / "first").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision, commit in (([], "b"), (["--revision", "first"], "a")):
        out = tmp_path / commit
        convert("--to", "llama", *revision, "owner/pure", out)
        expected = load_file(repo / "snapshots" / (commit * 40) / "model.safetensors")["lm_head.weight"]
        assert torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], expected)
    refused(convert, "CHECKPOINT: .*'owner/other': ", "--to", "llama", "owner/other", tmp_path / "other")
    refused(convert, f"--revision: .*'{out}'", "--to", "llama", "--revision", "x", out, tmp_path / "other")


NOT_PURE = {
    "biases": ({"attention_bias": True}, "attention_bias .*True"),
    "mlp_biases": ({"mlp_bias": True}, "mlp_bias .*True"),
    "dropout": ({"attention_dropout": 0.1}, r"attention_dropout .*\b0\.1\b"),
    "tied": ({"tie_word_embeddings": True}, ".*tie_word_embeddings=True"),
    "rope": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}},
        r".*rope_parameters: .*\bpartial_rotary_factor\b",
    ),
    "head_dim": ({"head_dim": 32}, r".*\bhead_dim .*\b32\b"),
}


@pytest.mark.parametrize("name", NOT_PURE)
def test_a_llama_that_is_not_pure_is_refused(convert, tmp_path, name):
    changes, message = NOT_PURE[name]
    save_llama(tmp_path / "llama", **changes)
    refused(convert, f"CHECKPOINT: {message}", "--to", "pure", tmp_path / "llama", tmp_path / "out")


def test_norm_weights_other_than_one_are_refused_and_ones_are_not(convert, tmp_path):
    model = save_llama(tmp_path / "llama")
    convert("--to", "pure", tmp_path / "llama", tmp_path / "pure")
    assert AutoConfig.from_pretrained(tmp_path / "pure").num_real_tokens is None
    model.model.layers[1].input_layernorm.weight.data[3] = 1 + 2**-20
    model.save_pretrained(tmp_path / "llama")
    message = r"CHECKPOINT: model\.layers\.1\.input_layernorm\.weight "
    refused(convert, message, "--to", "pure", tmp_path / "llama", tmp_path / "out")


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace weights of a saved model; None removes one."""
    state = {**load_file(folder / "model.safetensors"), **{key.replace("__", "."): v for key, v in changes.items()}}
    save_file({key: v for key, v in state.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


def test_an_incomplete_checkpoint_is_refused(convert, checkpoint, tmp_path):
    def refuses(message: str, source: Path | str = checkpoint, to: str = "llama") -> None:
        refused(convert, f"CHECKPOINT: {message}", "--to", to, source, tmp_path / "out")

    refuses("model_type .*'pure'.*'llama'", to="pure")
    refuses(rf"'{tmp_path}' .*config\.json", tmp_path)
    refuses(rf"'{tmp_path / 'nothing' / 'here'}' .*config\.json", tmp_path / "nothing" / "here")
    change_weights(checkpoint, lm_head__weight=None)
    refuses(r"missing .*\blm_head\.weight$")
    change_weights(checkpoint, lm_head__weight=torch.zeros(512, 288), lm_head__bias=torch.zeros(512))
    refuses(r"unexpected .*\blm_head\.bias$")
    change_weights(checkpoint, lm_head__bias=None, lm_head__weight=torch.zeros(500, 288))
    refuses(f"[^']+ '{checkpoint}': ")
    change_weights(checkpoint, lm_head__weight=torch.zeros(512, 288, dtype=torch.int8))
    refuses(r".*\bdtype F32, I8\b")
    change_weights(checkpoint, lm_head__weight=torch.full((512, 288), torch.nan))
    refuses(r".*\blogits\b.*\bfinite\b")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    refuses(r".*\bquantization_config\b")
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    refuses(r"config\.json: .*num_attention_heads")
    (checkpoint / "config.json").write_text(json.dumps(config))
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").write_text(json.dumps({**generation, "max_new_tokens": -1}))
    refuses(f"[^']+ '{checkpoint}': .*max_new_tokens")
    (checkpoint / "config.json").write_text("{")
    refuses(r"config\.json .*: ")
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    refuses(rf"'{checkpoint}' .*\*\.safetensors")


def test_nothing_is_overwritten(convert, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        refused(convert, f"OUT: '{out}' ", "--to", "llama", checkpoint, out)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (line,) = convert("--to", "gguf", checkpoint, tmp_path / "other", expect=2)[1].splitlines()
    assert "--to" in line


def test_an_export_with_other_logits_is_not_left_behind(convert, checkpoint, tmp_path, monkeypatch):
    """The comparison reads the written files."""
    convert_config = export.convert_config

    def wrong(config, to):
        converted = convert_config(config, to)
        converted.rms_norm_eps = 1e-2
        return converted

    monkeypatch.setattr(export, "convert_config", wrong)
    refused(convert, r"OUT: .*\blogits\b", "--to", "llama", checkpoint, tmp_path / "out", code=3)
    monkeypatch.setattr(export, "convert_config", convert_config)
    save_pretrained = LlamaForCausalLM.save_pretrained

    def forgetful(model, folder):
        model.generation_config = GenerationConfig()
        save_pretrained(model, folder)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", forgetful)
    refused(convert, r"OUT: .*\bsuppress", "--to", "llama", checkpoint, tmp_path / "out", code=3)


def test_a_full_disk_leaves_nothing_behind(convert, checkpoint, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        refused(convert, f"OUT: .*{os.strerror(errno.EFBIG)}", "--to", "llama", checkpoint, tmp_path / "out", code=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
