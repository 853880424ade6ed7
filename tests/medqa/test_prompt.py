"""The prompt is lm-evaluation-harness's, byte for byte, and only the stated answer format is parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.medqa.prompt import format_answer, format_prompt, parse_answer
from modeling_pure.medqa.questions import Question

text = st.text(max_size=40)


@given(text, st.tuples(text, text, text, text), st.integers(0, 3))
def test_the_prompt_is_that_of_lm_evaluation_harness(stem, options, answer):
    doc = {"sent1": stem, **{f"ending{i}": option for i, option in enumerate(options)}}
    expected = (
        f"Question: {doc['sent1']}\nA. {doc['ending0']}\nB. {doc['ending1']}\nC. {doc['ending2']}\n"
        f"D. {doc['ending3']}\nAnswer:"
    )
    assert format_prompt(Question(stem, options, answer)) == expected


@given(st.tuples(text, text, text, text), st.integers(0, 3))
def test_our_own_answers_are_parsed(options, answer):
    assert parse_answer(format_answer(Question("?", options, answer))) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" C", 2),
        (" C. Nitrofurantoin", 2),
        (" C.", 2),
        (" A. \nmore", 0),
        ("", None),
        ("C", None),
        ("  C", None),
        (" E", None),
        (" c", None),
        (" A woman", None),
        (" Aspirin", None),
        (" AB", None),
        (" A.B", None),
        (" (C)", None),
        (" The answer is C", None),
        ("\nC. x", None),
    ],
)
def test_anything_else_is_unparsed(completion, answer):
    assert parse_answer(completion) == answer
