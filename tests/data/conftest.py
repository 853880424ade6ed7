"""A mixture of the shared tiny sources, the documents in its sequences, and records that name their origin."""

import random
import re
from collections.abc import Callable

import numpy as np
import pytest

from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.decoders import LOST, Fault
from modeling_pure.data.mixture import Mixture


class NumberedRecords:
    """Shards of the given sizes, whose records are texts that name their origin, or faults."""

    key = name = listing = "numbered"

    def __init__(self, sizes: list[int], faulty: frozenset[int] = frozenset(), behind: range = range(0)):
        self.sizes, self.faulty, self.behind = sizes, faulty, behind
        self.num_shards = len(sizes)

    def read(self, shard: int, epoch: int, start: int):
        records = list(range(self.sizes[shard]))
        random.Random(f"{epoch} {shard}").shuffle(records)
        for record in records[start:]:
            fault = LOST if record in self.behind else Fault("no text")
            yield record, fault if record in self.faulty or record in self.behind else f"{epoch} {shard} {record}"

    def locate(self, shard: int, number: int) -> str:
        return f"{shard} {number}"

    def texts(self, epochs: int) -> list[str]:
        return sorted(
            f"{epoch} {shard} {record}"
            for epoch in range(epochs)
            for shard, size in enumerate(self.sizes)
            for record in range(size)
            if record not in self.faulty
        )


def documents_in(sequences: list[dict], tokenizer, name: str) -> set[int]:
    """The numbers of the documents of one text source that begin in these consecutive sequences."""
    tokens = [one["input_ids"] for one in sequences if one["source"] == name]
    text = tokenizer.decode(np.concatenate(tokens)) if tokens else ""
    return {int(number) for number in re.findall(rf"{name} (\d+):", text)}


@pytest.fixture
def make_mixture(sources, tokenizer) -> Callable[..., Mixture]:
    """Builds a mixture; fields of `DataArguments` and arguments of `Mixture` as keywords."""

    def make(given: dict | None = None, seed: int = 0, **kwargs) -> Mixture:
        rank = {name: kwargs.pop(name) for name in ("batch_size", "rank", "world_size") if name in kwargs}
        arguments = DataArguments(**{"sources": given or sources, "max_seq_length": 32, **kwargs})
        return Mixture(arguments, tokenizer, seed, **rank)

    return make
