"""A recipe's sources are checked by key before anything is read."""

from fractions import Fraction

import pytest

from modeling_pure.data.arguments import integer_weights, parse_sources
from modeling_pure.errors import InputError


def test_weights_become_the_smallest_integers():
    names = {"a": 0.45, "b": 0.25, "c": 0.2, "d": 0.1}
    sources = parse_sources({name: {"path": name, "weight": weight} for name, weight in names.items()})
    assert [source.weight for source in sources] == [Fraction(9, 20), Fraction(1, 4), Fraction(1, 5), Fraction(1, 10)]
    assert integer_weights(sources) == {"a": 9, "b": 5, "c": 4, "d": 2}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (None, "sources: .*'path'.*'weight'"),
        ({}, "sources: .*'path'.*'weight'"),
        ({"c4": "allenai/c4"}, r"sources\.c4: .*'allenai/c4'$"),
        ({"c4": {"weight": 1}}, r"sources\.c4\.path: "),
        ({"c4": {"path": "x"}}, r"sources\.c4\.weight: [^\d']*$"),
        ({"c4": {"path": "x", "weight": "much"}}, r"sources\.c4\.weight: .*'much'$"),
        ({"c4": {"path": "x", "weight": -1}}, r"sources\.c4\.weight: .*-1$"),
        ({"c4": {"path": "x", "weight": float("nan")}}, r"sources\.c4\.weight: .*\bnan$"),
        ({"c4": {"path": "x", "weight": [1]}}, r"sources\.c4\.weight: .*\[1\]$"),
        ({"c4": {"path": "x", "weight": 1, "wieght": 1}}, r"sources\.c4\.wieght: .*'weight'"),
        ({"c4": {"path": [], "weight": 1}}, r"sources\.c4\.path: .*\[\]$"),
        ({"c4": {"path": ["x", 1], "weight": 1}}, r"sources\.c4\.path: .*\['x', 1\]$"),
        ({"c4": {"path": ["x", "y"], "weight": 1, "format": "medqa"}}, r"sources\.c4\.path: .*\bmedqa\b.*\b2$"),
        ({"c4": {"path": "x", "weight": 1, "max_epochs": 0}}, r"sources\.c4\.max_epochs: .*\b0$"),
        ({"c4": {"path": "x", "weight": 1, "max_epochs": True}}, r"sources\.c4\.max_epochs: .*\bTrue$"),
        ({"c4": {"path": "x", "weight": 1, "format": "pdf"}}, r"sources\.c4\.format: .*'medqa'.*'pdf'$"),
        ({"c4": {"path": "x", "weight": 1, "answer_formats": "text"}}, r"sources\.c4\.answer_formats: "),
        (
            {"c4": {"path": "x", "weight": 1, "format": "medqa", "answer_formats": {"text": 0.4, "letter": 0.5}}},
            r"sources\.c4\.answer_formats: .*0\.4",
        ),
        ({"a": {"path": "x", "weight": 0.5}, "b": {"path": "x", "weight": 0.6}}, r"sources: .*\b1\.1\b"),
    ],
)
def test_bad_sources_name_their_key(sources, message):
    with pytest.raises(InputError, match=f"^{message}") as error:
        parse_sources(sources)
    assert "\n" not in str(error.value)


def test_answers_are_letters_unless_a_medqa_source_says_otherwise():
    exam = {"path": "x", "weight": 0.5, "format": "medqa"}
    entries = {"a": exam, "b": {**exam, "answer_formats": {"text": 0.25, "letter": 0.75}, "weight": 0.3}}
    sources = parse_sources({**entries, "c": {"path": "x", "weight": 0.2}})
    formats = [source.answer_formats for source in sources]
    assert formats == [{"letter": 1.0}, {"letter": 0.75, "text": 0.25}, None]
    assert list(formats[1]) == ["letter", "text"]
    again = {source.name: source.facts() for source in sources}
    for entry in again.values():
        del entry["name"]
    assert parse_sources(again) == sources
