"""The formulations of a run, and its headline."""

import pytest

from modeling_pure import PureConfig
from modeling_pure.medqa.arguments import EvalArguments
from modeling_pure.medqa.formats import teach_formats
from modeling_pure.medqa.formulations import Plan


def plan(taught: list[str], **options) -> Plan:
    config = PureConfig()
    teach_formats(config, taught)
    return EvalArguments(**options).plan(config)


def names(found: Plan) -> list[str]:
    return [formulation.name for formulation in found.formulations]


@pytest.mark.parametrize(
    ("taught", "expected"),
    [
        ([], ["letter"]),
        (["letter"], ["letter"]),
        (["text"], ["text", "letter"]),
        (["letter", "text", "reasoned"], ["text", "letter"]),
        (["letter", "reasoned"], ["letter"]),
        (["reasoned"], ["generate reasoned", "letter"]),
    ],
)
def test_the_headline_follows_what_was_taught_and_letters_are_always_reported(taught, expected):
    found = plan(taught)
    assert names(found) == expected
    assert found.warning is None
    assert all(name in found.reason for name in taught)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scorer": "cloze"}, ["cloze", "letter"]),
        ({"scorer": "letter", "beside": ["cloze", "text", "letter", "text"]}, ["letter", "cloze", "text"]),
        ({"scorer": "generate"}, ["generate text", "letter"]),
        ({"scorer": "generate", "answer_format": "reasoned", "chat": True}, ["generate reasoned, chat", "letter"]),
        ({"beside": ["generate"], "chat": True}, ["text", "generate text, chat", "letter"]),
        ({"passages": "books"}, ["text, open book", "text", "letter"]),
        ({"scorer": "letter", "passages": "books"}, ["letter, open book", "letter"]),
        ({"task": "pubmedqa"}, ["letter"]),
        ({"task": "pubmedqa", "passages": "books"}, ["letter, open book", "letter"]),
    ],
)
def test_further_formulations_run_once_and_without_passages(options, expected):
    assert names(plan(["text"], **options)) == expected


def test_generation_prefers_taught_reasons():
    assert names(plan(["letter", "text", "reasoned"], beside=["generate"])) == ["text", "generate reasoned", "letter"]


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, False),
        ({"scorer": "letter"}, True),
        ({"scorer": "generate", "answer_format": "reasoned"}, True),
        ({"scorer": "generate", "answer_format": "text"}, False),
        ({"beside": ["generate"], "answer_format": "reasoned"}, True),
        ({"beside": ["letter"]}, False),  # letters are always reported
        ({"scorer": "cloze"}, False),  # no model is taught cloze
        ({"task": "pubmedqa"}, False),
    ],
)
def test_an_untaught_format_gets_a_warning(options, warned):
    assert bool(plan(["text"], **options).warning) == warned
    assert plan([], **options).warning is None
