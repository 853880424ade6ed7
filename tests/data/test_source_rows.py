"""Exam text in the answer formats of a recipe: each question draws its own, at every pass."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.held_out import open_sources
from modeling_pure.data.source_rows import ExamRows
from modeling_pure.data.sources import parse_sources
from modeling_pure.errors import InputError
from modeling_pure.medqa.formats import parse_answer
from modeling_pure.medqa.questions import Question
from tests.conftest import question_row, write_jsonl

SHARES = {"letter": 0.25, "text": 0.25, "reasoned": 0.5}


@pytest.fixture
def explained(questions) -> list[Question]:
    """Every other question has an explanation, which calls no option by its letter."""
    return [replace(one, explanation="Pyuria. So it is." if i % 2 else "") for i, one in enumerate(questions)]


def texts_of(rows: ExamRows, epoch: int = 0) -> dict[int, str]:
    return dict(rows.read(0, epoch, 0))


def format_of(text: str) -> str:
    """The format of an exam text, by what stands after the options."""
    if "\nReasoning:" in text:
        return "reasoned"
    return "letter" if text.split("\nAnswer: ")[1][1] == "." else "text"


@pytest.mark.parametrize("formats", [None, {"letter": 1.0}])
def test_letters_alone_are_written_as_before_there_were_formats(explained, formats):
    for epoch in (0, 3):
        for i, text in texts_of(ExamRows("key", explained, 7, formats), epoch).items():
            shown = explained[i].shuffled(random.Random(f"options 7 {epoch} {i}"))
            options = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", shown.options, strict=True))
            assert (
                text == f"Question: {shown.question}\n{options}Answer: {shown.letter}. {shown.options[shown.answer]}"
            )


def test_formats_come_in_their_shares_and_reasons_where_there_are_any(explained):
    rows = ExamRows("key", explained, 0, SHARES)
    drawn = {has: Counter() for has in (True, False)}
    for epoch in range(20):
        for i, text in texts_of(rows, epoch).items():
            drawn[bool(explained[i].explanation)][format_of(text)] += 1
    assert {name: count / 1200 for name, count in drawn[True].items()} == pytest.approx(SHARES, abs=0.05)
    assert {name: count / 1200 for name, count in drawn[False].items()} == pytest.approx(
        {"letter": 0.5, "text": 0.5}, abs=0.05
    )


def test_every_text_can_be_parsed_for_the_right_option(explained):
    for i, text in texts_of(ExamRows("key", explained, 0, SHARES)).items():
        name = format_of(text)
        prompt, completion = text.split("\nReasoning:" if name == "reasoned" else "\nAnswer:", 1)
        options = [line[3:] for line in prompt.split("\n")[1:]]
        answer = parse_answer(completion, options, name)
        assert options[answer.option] == explained[i].options[explained[i].answer]
        assert not answer.contradicts
        assert sorted(options) == sorted(explained[i].options)


def test_a_question_draws_its_format_whoever_reads_it(explained):
    rows = ExamRows("key", explained, 3, SHARES)
    whole = list(rows.read(0, 1, 0))
    assert list(rows.read(0, 1, 50)) == whole[50:]
    formats = [[format_of(text) for _, text in sorted(rows.read(0, epoch, 0))] for epoch in (1, 2)]
    assert formats[0] != formats[1]


def test_questions_without_reasons_are_left_out_only_if_all_is_reasoned(explained):
    rows = ExamRows("key", explained, 0, {"reasoned": 1.0})
    assert (len(rows.questions), rows.left_out) == (60, 60)
    assert {format_of(text) for text in rows.texts()} == {"reasoned"}
    assert len(rows.texts()) == 60
    assert ExamRows("key", explained, 0, SHARES).left_out == 0
    assert "60" in rows.describe()


def open_exam(path, formats, **fields):
    source = {"path": str(path), "weight": 1, "format": "medqa", "answer_formats": formats, **fields}
    return open_sources(parse_sources({"usmle": source}), DataArguments(), 0)[0]


def test_reasons_are_refused_where_no_question_has_any(corpus):
    with pytest.raises(InputError, match=r"^sources\.usmle\.answer_formats: "):
        open_exam(corpus / "questions.jsonl", {"reasoned": 0.5, "letter": 0.5})


def test_held_out_questions_are_written_in_the_formats_too(explained, tmp_path):
    rows = [{**question_row(one), "explanation": one.explanation} for one in explained]
    dev = write_jsonl(tmp_path / "dev.jsonl", rows[:40])
    train = write_jsonl(tmp_path / "train.jsonl", rows[40:])
    one = open_exam(train, SHARES, validation_path=str(dev))
    assert {*map(format_of, one.held_out)} == {*SHARES}
    assert (len(one.held_out), len(one.dev)) == (40, 40)
    one = open_exam(train, "reasoned", validation_path=str(dev))
    assert (len(one.held_out), len(one.dev)) == (20, 40)
    bare = write_jsonl(tmp_path / "bare.jsonl", [question_row(one) for one in explained[:40]])
    with pytest.raises(InputError, match=r"^sources\.usmle\.answer_formats: "):
        open_exam(train, "reasoned", validation_path=str(bare))


def test_medmcqa_brings_its_explanations(tmp_path):
    rows = [
        {
            "question": f"Case {i}?",
            **dict(zip(("opa", "opb", "opc", "opd"), "wxyz", strict=True)),
            "cop": 2,
            "exp": why,
        }
        for i, why in enumerate(["Because of y.", None] * 40)
    ]
    one = open_exam(write_jsonl(tmp_path / "medmcqa.jsonl", rows), "reasoned")
    assert one.rows.left_out > 0
    assert all("\nReasoning: Because of y.\nAnswer: y (" in text for text in one.rows.texts())
