"""A mixture on the shared tiny sources, which documents its rows hold, and rows that say where they are from."""

import random
import re
from collections.abc import Callable

import numpy as np
import pytest

from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.decoders import LOST, Fault
from modeling_pure.data.mixture import Mixture


class NumberedRecords:
    """Shards of so many rows; each row is a text that says where it is from, or nothing."""

    key = name = listing = "numbered"

    def __init__(self, sizes: list[int], faulty: frozenset[int] = frozenset(), behind: range = range(0)):
        self.sizes, self.faulty, self.behind = sizes, faulty, behind
        self.num_shards = len(sizes)

    def read(self, shard: int, epoch: int, start: int):
        rows = list(range(self.sizes[shard]))
        random.Random(f"{epoch} {shard}").shuffle(rows)
        for row in rows[start:]:
            fault = LOST if row in self.behind else Fault("no text")
            yield row, fault if row in self.faulty or row in self.behind else f"{epoch} {shard} {row}"

    def locate(self, shard: int, number: int) -> str:
        return f"{shard} {number}"

    def texts(self, epochs: int) -> list[str]:
        return sorted(
            f"{epoch} {shard} {row}"
            for epoch in range(epochs)
            for shard, size in enumerate(self.sizes)
            for row in range(size)
            if row not in self.faulty
        )


def documents_in(rows: list[dict], tokenizer, name: str) -> set[int]:
    """The numbers of the documents of one text source that begin in these rows, which follow each other."""
    tokens = [row["input_ids"] for row in rows if row["source"] == name]
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
