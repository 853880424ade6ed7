"""A mixture on the shared tiny sources."""

from collections.abc import Callable

import pytest

from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.held_out import open_sources
from modeling_pure.data.mixture import Mixture
from modeling_pure.data.sources import parse_sources


@pytest.fixture
def make_mixture(sources, tokenizer) -> Callable[..., Mixture]:
    """Builds a mixture; fields of `DataArguments` and arguments of `Mixture` as keywords."""

    def make(given: dict | None = None, seed: int = 0, **kwargs) -> Mixture:
        rank = {name: kwargs.pop(name) for name in ("batch_size", "rank", "world_size") if name in kwargs}
        arguments = DataArguments(**{"max_seq_length": 32, **kwargs})
        return Mixture(
            open_sources(parse_sources(given or sources), arguments, seed), tokenizer, arguments, seed, **rank
        )

    return make
