"""Completions end at every end token in any file of a model, and the saved model has all of them."""

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from modeling_pure import PureConfig
from modeling_pure.medqa.formats import end_ids, end_tokens, set_end_tokens
from modeling_pure.medqa.rewards import Correct, LengthPenalty


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [(0, 0, [0]), (0, None, [0]), (7, 0, [0, 7]), ([7, 0], 0, [0, 7]), (0, [9, 7], [0, 7, 9]), (None, None, [0])],
)
def test_end_tokens_come_from_all_files(tokenizer, config, generation, ends):
    made = PureConfig.from_preset("tiny", eos_token_id=config)
    assert end_ids(made, GenerationConfig(eos_token_id=generation), tokenizer) == ends


def test_the_saved_model_stops_at_all_end_tokens(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(model.config, "eos_token_id", [7, 0])
    monkeypatch.setattr(model.generation_config, "eos_token_id", 0)
    assert set_end_tokens(model, tokenizer) == [0, 7]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == [0, 7] == end_tokens(loaded, tokenizer)


@pytest.mark.parametrize("turn", [False, True])
def test_an_answer_does_not_include_its_end_token(tokenizer, turn):
    """A second end token is often an ordinary token to the tokenizer, and part of the decoded text."""
    (end,) = tokenizer("?").input_ids
    ids = [*tokenizer(" B").input_ids, end]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == " B?"
    completion = [{"role": "assistant", "content": text}] if turn else text
    columns = {"options": [["w", "x", "y", "z"]], "answer_format": ["letter"]}
    assert Correct(tokenizer, [0, end])([completion], [ids], [1], **columns) == [1.0]
    assert Correct(tokenizer, [0])([completion], [ids], [1], **columns) == [0.0]
    assert LengthPenalty(4, tokenizer, [0, end])([completion], [ids], **columns) == [0.75]
