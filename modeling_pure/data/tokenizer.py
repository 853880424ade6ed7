"""Fast tokenization of documents."""

import json
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

# GPT-2's pattern for words in tiktoken's syntax, with possessive quantifiers wherever backtracking could only fail.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
TIKTOKEN_CHARACTERS = 500_000  # its regex engine fails on about a million consecutive blanks


class DocumentTokenizer:
    """Turns documents into token ids, and ends each document with the end-of-text token.

    A byte-level BPE such as GPT-2's runs in `tiktoken`, which gives the same ids in a fifth of the time; any other
    tokenizer, and any very long document, runs in `tokenizers`. Special tokens such as `<|endoftext|>` are read as
    ordinary text, so that no document can contain one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.document_end = tokenizer.eos_token_id
        self.fast = fast_encoding(self.backend)

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, int32 of shape (tokens + 1,)."""
        return [np.array([*self._encode(text), self.document_end], dtype=np.int32) for text in texts]

    def _encode(self, text: str) -> list[int]:
        if self.fast and len(text) <= TIKTOKEN_CHARACTERS:
            return self.fast.encode_ordinary(text)
        return self.backend.encode(text, add_special_tokens=False).ids


def fast_encoding(backend: Tokenizer) -> tiktoken.Encoding | None:
    """The same tokenizer in `tiktoken`; None for other kinds of tokenizers.

    `tiktoken` first merges the pair of neighbours whose union has the lowest id, `tokenizers` the pair that is first
    in the list of merges. Both agree if the merges are listed in the order of their ids. As a check, both encode the
    vocabulary itself.
    """
    facts = json.loads(backend.to_str())
    model, words = facts["model"], facts["pre_tokenizer"]
    if facts["normalizer"] or not (is_plain_bpe(model) and splits_bytes(words)):
        return None
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    special = {token["content"] for token in facts["added_tokens"]}
    vocabulary = {token: i for token, i in model["vocab"].items() if token not in special}
    merged = [model["vocab"]["".join(pair)] for pair in model["merges"]]
    if not all(letter in byte_of for token in vocabulary for letter in token) or merged != sorted(set(merged)):
        return None
    ranks = {bytes(byte_of[letter] for letter in token): i for token, i in vocabulary.items()}
    if any(bytes([byte]) not in ranks for byte in range(256)):
        return None
    encoding = tiktoken.Encoding("documents", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    everything = "".join(token.decode("utf-8", "ignore") for token in ranks)
    same = encoding.encode_ordinary(everything) == backend.encode(everything, add_special_tokens=False).ids
    return encoding if same else None


def is_plain_bpe(model: dict[str, Any]) -> bool:
    """Whether a tokenizer's model only merges, in the order of its list."""
    plain = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False}
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    return not affixes and all(model.get(key) == value for key, value in plain.items())


def splits_bytes(words: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer splits text into words as GPT-2's does."""
    return bool(words and words["type"] == "ByteLevel" and words["use_regex"] and not words["add_prefix_space"])
