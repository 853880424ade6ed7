"""A small random model with distinct logits, and a plain implementation of BM25."""

import math
from collections import Counter

import pytest
import torch

from modeling_pure import PureConfig, PureForCausalLM


@pytest.fixture(scope="module")
def model(tokenizer):
    """Its initial scales are larger than usual, or every logit would be near zero."""
    torch.manual_seed(0)
    config = PureConfig.from_preset(
        "tiny", hidden_size=64, intermediate_size=160, initializer_range=0.1, head_initializer_range=0.1
    )
    return PureForCausalLM(config).eval()


def plain_bm25(documents: list[list[str]], query: list[str]) -> list[float]:
    """Lucene's BM25, word by word, with k1 1.5 and b 0.75."""
    average = sum(map(len, documents)) / len(documents)
    holding = {word: sum(word in document for document in documents) for word in query}
    scores = []
    for document in documents:
        counts = Counter(document)
        norm = 1.5 * (0.25 + 0.75 * len(document) / average)
        idf = {
            word: math.log(1 + (len(documents) - number + 0.5) / (number + 0.5)) for word, number in holding.items()
        }
        scores.append(sum(idf[word] * counts[word] / (counts[word] + norm) for word in query))
    return scores
