"""The prompt is lm-evaluation-harness's, byte for byte, and only the stated answer formats are parsed."""

import random
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modeling_pure import PureConfig
from modeling_pure.errors import InputError
from modeling_pure.medqa.formats import (
    ANSWER_FORMATS,
    checked_formats,
    draw_format,
    format_answer,
    format_prompt,
    format_stem,
    option_text,
    parse_answer,
    shuffled_for,
    taught_formats,
    teach_formats,
    warn_untaught,
)
from modeling_pure.medqa.questions import Question

text = st.text(max_size=40)
four = st.tuples(text, text, text, text)
OPTIONS = ("Vitamin", "Vitamin K", "Nitrofurantoin", "β-Blocker, 5 µg")


@given(text, four, st.integers(0, 3))
def test_the_prompt_is_that_of_lm_evaluation_harness(stem, options, answer):
    doc = {"sent1": stem, **{f"ending{i}": option for i, option in enumerate(options)}}
    expected = (
        f"Question: {doc['sent1']}\nA. {doc['ending0']}\nB. {doc['ending1']}\nC. {doc['ending2']}\n"
        f"D. {doc['ending3']}\nAnswer:"
    )
    question = Question(stem, options, answer)
    assert format_prompt(question) == format_prompt(question, "text") == expected
    assert format_prompt(question, "reasoned") == expected.removesuffix("Answer:") + "Reasoning:"


def test_passages_precede_the_prompt():
    question = Question("Which?", OPTIONS, 0, passages=("One.", "Two."))
    for prompt in (format_prompt(question), format_prompt(question, "reasoned"), format_stem(question)):
        assert prompt.startswith("Passage 1: One.\nPassage 2: Two.\nQuestion: Which?\n")


def test_the_formats_byte_for_byte():
    question = Question("Which?", OPTIONS, 2, explanation="Pyuria.")
    assert format_answer(question) == " C. Nitrofurantoin"
    assert format_answer(question, "text") == " Nitrofurantoin (C)"
    assert format_answer(question, "reasoned") == " Pyuria.\nAnswer: Nitrofurantoin (C)"


@given(four, st.integers(0, 3), st.sampled_from(ANSWER_FORMATS), st.text(min_size=1))
def test_our_own_answers_are_parsed(options, answer, answer_format, explanation):
    assume(explanation.strip())
    completion = format_answer(Question("?", options, answer, explanation=explanation), answer_format)
    found = parse_answer(completion, options, answer_format)
    assert found.option == answer
    if answer_format == "reasoned":
        assert found.reasoning == f" {explanation}"
    if len({option_text(option) for option in options}) == 4:
        assert not found.contradicts


@given(text, st.sampled_from(ANSWER_FORMATS))
def test_any_completion_can_be_parsed(completion, answer_format):
    assert parse_answer(completion, OPTIONS, answer_format).option in (None, 0, 1, 2, 3)


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
        (" Nitrofurantoin (C)", None),
    ],
)
def test_anything_but_a_leading_letter_is_not_parsed(completion, answer):
    assert parse_answer(completion, OPTIONS).option == answer


@pytest.mark.parametrize(
    ("completion", "answer", "contradicts"),
    [
        (" Nitrofurantoin (C)", 2, False),
        (" Nitrofurantoin", 2, False),  # without its letter
        (" Nitrofurantoin (A)", 2, True),
        (" nitrofurantoin (a)", 2, True),
        (" nitrofurantoin (C)", 2, False),
        (" NITROFURANTOIN (A)", 2, True),
        ("  Nitrofurantoin   (C)  ", 2, False),
        (" Nitrofurantoin (C)\nQuestion: Another?\nA. Vitamin", 2, False),
        (" Vitamin (A)", 0, False),  # a prefix of another option
        (" Vitamin K (B)", 1, False),
        (" Vitamin (B)", 0, True),
        (" Vitamin K2 (B)", None, False),
        (" Vita", None, False),
        (" β-blocker, 5 µg (D)", 3, False),
        (f" {unicodedata.normalize('NFD', 'β-Blocker, 5 µg')} (D)", 3, False),
        (" β-Blocker, 5 μg (D)", 3, False),  # the Greek letter for the micro sign
        (" C. Nitrofurantoin", None, False),
        (" C", None, False),
        (" Nitrofurantoin (C) or Vitamin (A)", None, False),
        (" Nitrofurantoin (C) because of pyuria", None, False),
        (" Not Vitamin (A) but Nitrofurantoin (C)", None, False),
        (" (C)", None, False),
        ("", None, False),
        ("\n Nitrofurantoin (C)", None, False),
    ],
)
def test_the_text_decides_over_the_letter(completion, answer, contradicts):
    found = parse_answer(completion, OPTIONS, "text")
    assert (found.option, found.contradicts) == (answer, contradicts)


@pytest.mark.parametrize(
    ("options", "completion", "answer"),
    [
        (("pH", "PH", "Ph", "x"), " PH (B)", 1),  # case distinguishes these
        (("pH", "PH", "Ph", "x"), " ph", None),
        (("same", "same", "other", "x"), " same (B)", 1),  # its own letter distinguishes these
        (("same", "same", "other", "x"), " same (C)", None),
        (("same", "same", "other", "x"), " same", None),
        (("mg", "MG", "g", "kg"), " MG (A)", 1),  # an exact text, not the letter
        (("", "b", "c", "d"), "", None),
        (("", "b", "c", "d"), " (A)", 0),
        (("x", "x (A)", "y", "z"), " x (A)", 0),
        (("x", "x (A)", "y", "z"), " x (A) (B)", 1),
        (("A", "B", "AB", "O"), " AB (C)", 2),  # blood groups
        (("A", "B", "AB", "O"), " B (B)", 1),
        (("10²", "102", "10", "1"), " 102 (B)", 1),
        (("10²", "101", "10", "1"), " 102 (A)", None),
        (("two\nlines", "b", "c", "d"), " two lines (A)", 0),
        (("one\u2028line", "b", "c", "d"), " one line (A)", 0),
    ],
)
def test_similar_options_are_distinguished_or_not_parsed(options, completion, answer):
    assert parse_answer(completion, options, "text").option == answer
    assert parse_answer(f" Because.\nAnswer:{completion}", options, "reasoned").option == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" Pyuria.\nAnswer: Nitrofurantoin (C)", 2),
        (" Pyuria.\nAnswer: C. Nitrofurantoin", 2),
        (" Pyuria.\nAnswer: C", 2),
        (" A. Vitamin is wrong, and so is Vitamin K (B).\nAnswer: Nitrofurantoin (C)", 2),
        (" First.\nAnswer: Vitamin (A)\nNo.\nAnswer: Nitrofurantoin (C)", 2),  # the last line decides
        (" First.\nAnswer: Nitrofurantoin (C)\nAnswer: one of these", None),  # even if it is not an answer
        (" First.\nAnswer: Nitrofurantoin (C)\nThat is all.", 2),
        (" The Answer: Nitrofurantoin (C)", None),  # not at the start of a line
        (" Pyuria.\n Answer: Nitrofurantoin (C)", None),
        (" Pyuria.\nanswer: Nitrofurantoin (C)", None),
        (" Pyuria.\u2028Answer: Nitrofurantoin (C)", None),  # not a line break
        (" Pyuria.\n\nAnswer: nitrofurantoin (C)", 2),
        (" Nitrofurantoin (C)", None),
        (" C. Nitrofurantoin", None),
        ("Answer: Nitrofurantoin (C)", 2),  # without reasons
        (" Answer: Nitrofurantoin (C)", 2),  # the form of a chat model's turn
        ("\nAnswer:", None),
        ("", None),
    ],
)
def test_the_last_answer_line_decides_after_reasons(completion, answer):
    assert parse_answer(completion, OPTIONS, "reasoned").option == answer


def test_unfinished_reasons_have_no_answer():
    completion = " Pyuria.\nAnswer: Nitrofurantoin (C)"
    cut = parse_answer(completion, OPTIONS, "reasoned", finished=False)
    assert (cut.option, cut.reasoning) == (None, completion)
    assert parse_answer(" Nitrofurantoin (C)", OPTIONS, "text", finished=False).option == 2


def test_a_letter_with_the_text_of_another_option_contradicts():
    assert parse_answer(" C. Vitamin K", OPTIONS).contradicts
    assert not parse_answer(" C. Vitamin X", OPTIONS).contradicts
    found = parse_answer(" So.\nAnswer: C. Vitamin K", OPTIONS, "reasoned")
    assert (found.option, found.contradicts) == (2, True)


def test_fewer_options_have_fewer_letters():
    assert parse_answer(" C", ("a", "b")).option is None
    assert parse_answer(" b (B)", ("a", "b"), "text").option == 1


def test_more_options_have_more_letters():
    options = ("a", "b", "c", "d", "e", "f")
    assert format_prompt(Question("q", options, 0)).endswith("\nD. d\nE. e\nF. f\nAnswer:")
    assert parse_answer(" F. f", options).option == 5
    assert parse_answer(" F. f", options[:4]).option is None
    assert parse_answer(" e (E)", options, "text").option == 4


@pytest.mark.parametrize(
    "shares",
    [{}, {"text": 0.5}, {"words": 1.0}, {"text": "1"}, {"text": True}, {"text": 1.5, "letter": -0.5}, 3, None],
)
def test_invalid_shares_are_refused(shares):
    with pytest.raises(InputError, match=r"^answer_formats: "):
        checked_formats("answer_formats", shares)


def test_drawn_formats_have_their_shares():
    assert checked_formats("answer_formats", "text") == {"text": 1.0}
    shares = checked_formats("answer_formats", {"text": 0.25, "letter": 0.75})
    rng, question = random.Random(0), Question("?", OPTIONS, 0)
    drawn = [draw_format(shares, question, rng) for _ in range(4000)]
    assert abs(drawn.count("text") / 4000 - 0.25) < 0.03


def test_a_question_without_explanation_never_gets_the_format_reasoned():
    rng, bare = random.Random(0), Question("?", OPTIONS, 0)
    assert {draw_format({"reasoned": 0.9, "text": 0.1}, bare, rng) for _ in range(50)} == {"text"}
    with pytest.raises(ValueError, match="explanation"):
        draw_format({"reasoned": 1.0}, bare, rng)
    with pytest.raises(ValueError, match="explanation"):
        format_answer(bare, "reasoned")


@pytest.mark.parametrize(
    ("explanation", "moves"),
    [
        ("Ans. is 'c' i.e., Nitrofurantoin", False),
        ("Answer: (b)", False),
        ("Option D is wrong.", False),
        ("Ans. A", False),
        ("Ans.C. Nitrofurantoin", False),
        ("Ans. is b: it reaches urine", False),
        ("\u2018c\u2019 is the drug of choice", False),
        ("a) is wrong", False),
        ("[D]", False),
        ("Options A and B raise it.", False),
        ("A and B are wrong.", False),
        ("C. Nitrofurantoin reaches urine.", False),
        ("The first option is wrong.", False),
        ("B is a decoy.", False),
        ("A woman needs vitamin A, which is fat soluble.", True),
        ("Hepatitis B, a DNA virus", True),
    ],
)
def test_options_that_an_explanation_names_by_letter_keep_their_places(explanation, moves):
    question = Question("?", OPTIONS, 0, explanation=explanation)
    orders = {shuffled_for(question, "reasoned", random.Random(seed)).options for seed in range(20)}
    assert (len(orders) > 1) == moves
    assert len({shuffled_for(question, "text", random.Random(seed)).options for seed in range(20)}) > 1


def test_a_configuration_holds_the_taught_formats(tmp_path):
    config = PureConfig.from_preset("tiny")
    assert taught_formats(config) == []
    assert warn_untaught(config, "text") is None
    teach_formats(config, ["text"])
    teach_formats(config, {"letter": 0.5, "text": 0.5})
    config.save_pretrained(tmp_path)
    config = PureConfig.from_pretrained(tmp_path)
    assert taught_formats(config) == ["letter", "text"]
    assert warn_untaught(config, "text") is None
    assert "reasoned" in warn_untaught(config, "reasoned")
