"""A recipe's sources are checked by key before anything is read."""

from fractions import Fraction

import pytest

from modeling_pure.data.sources import integer_weights, parse_sources
from modeling_pure.errors import InputError


def test_weights_become_the_smallest_integers():
    names = {"a": 0.45, "b": 0.25, "c": 0.2, "d": 0.1}
    sources = parse_sources({name: {"path": name, "weight": weight} for name, weight in names.items()})
    assert [source.weight for source in sources] == [Fraction(9, 20), Fraction(1, 4), Fraction(1, 5), Fraction(1, 10)]
    assert integer_weights(sources) == {"a": 9, "b": 5, "c": 4, "d": 2}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (None, "sources: expected a mapping"),
        ({}, "sources: expected a mapping"),
        ({"c4": "allenai/c4"}, "sources.c4: expected a mapping"),
        ({"c4": {"weight": 1}}, "sources.c4.path: missing"),
        ({"c4": {"path": "x"}}, "sources.c4.weight: missing"),
        (
            {"c4": {"path": "x", "weight": "much"}},
            "sources.c4.weight: expected a number between 0 and 1, found 'much'",
        ),
        ({"c4": {"path": "x", "weight": -1}}, "sources.c4.weight: expected a number above 0"),
        ({"c4": {"path": "x", "weight": float("nan")}}, "sources.c4.weight: expected a number"),
        ({"c4": {"path": "x", "weight": [1]}}, "sources.c4.weight: expected a number"),
        ({"c4": {"path": "x", "weight": 1, "wieght": 1}}, "sources.c4.wieght: unknown key"),
        ({"c4": {"path": [], "weight": 1}}, "sources.c4.path: expected text or a list of texts, found []"),
        ({"c4": {"path": ["x", 1], "weight": 1}}, "sources.c4.path: expected text or a list of texts"),
        ({"c4": {"path": ["x", "y"], "weight": 1, "format": "medqa"}}, "sources.c4.path: a medqa source has one path"),
        (
            {"c4": {"path": "x", "weight": 1, "max_epochs": 0}},
            "sources.c4.max_epochs: expected a whole number above 0",
        ),
        ({"c4": {"path": "x", "weight": 1, "max_epochs": True}}, "sources.c4.max_epochs: expected a whole number"),
        ({"c4": {"path": "x", "weight": 1, "format": "pdf"}}, "sources.c4.format: expected one of"),
        (
            {"a": {"path": "x", "weight": 0.5}, "b": {"path": "x", "weight": 0.6}},
            "the weights add up to 1.1, expected 1",
        ),
    ],
)
def test_bad_sources_name_their_key(sources, message):
    with pytest.raises(InputError) as error:
        parse_sources(sources)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
