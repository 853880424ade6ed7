"""Both published layouts give the same questions; errors name file and record."""

import random

import pytest

from modeling_pure.errors import InputError
from modeling_pure.medqa.questions import Question, read_questions, repeated_rows
from tests.conftest import question_row, write_jsonl


def test_both_layouts_give_the_same_questions(tmp_path, questions):
    native = write_jsonl(tmp_path / "native.jsonl", [question_row(q) for q in questions])
    swag = [
        {"id": str(i), "sent1": q.question, "sent2": "", "label": q.answer}
        | {f"ending{k}": option for k, option in enumerate(q.options)}
        for i, q in enumerate(questions)
    ]
    other = write_jsonl(tmp_path / "swag.jsonl", swag)
    read = read_questions("questions", str(native))
    assert read == questions
    assert [(q.question, q.options, q.answer) for q in read_questions("questions", str(other))] == [
        (q.question, q.options, q.answer) for q in questions
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"answer_idx": "E"},
        {"answer_idx": None},
        {"answer_idx": ""},
        {"answer_idx": "AB"},
        {"answer": "none of the options"},
        {"question": " "},
        {"question": None},
        {"options": {"A": "x"}},
        {"options": dict(zip("ABCDE", "vwxyz", strict=True))},
        {"options": dict(zip("ABCD", ["x", 1, "y", "z"], strict=True))},
    ],
    ids=str,
)
def test_an_invalid_record_is_named(tmp_path, questions, change):
    rows = [question_row(q) for q in questions[:3]]
    rows[2].update(change)
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(InputError, match=r"^questions: (row 2 .*'.*bad\.jsonl' |.*bad\.jsonl': )"):
        read_questions("questions", str(path))


def test_a_late_record_with_five_options_is_named(tmp_path, questions):
    """Files are read in blocks of 10 MB, and the first block determines the columns."""
    rows = [question_row(q) | {"meta_info": "x" * 200_000} for q in questions[:80]]
    rows[79]["options"]["E"] = "fifth"
    path = write_jsonl(tmp_path / "late.jsonl", rows)
    with pytest.raises(InputError, match="late.jsonl"):
        read_questions("questions", str(path))


def test_five_endings_are_named(tmp_path, questions):
    row = {"sent1": "Which?", "label": 0} | {f"ending{i}": str(i) for i in range(5)}
    path = write_jsonl(tmp_path / "five.jsonl", [row])
    with pytest.raises(InputError, match=r"^questions: row 0 .*\bending4\b"):
        read_questions("questions", str(path))


def test_repeated_questions_are_found_by_row(questions):
    again = questions[1].shuffled(random.Random(0))
    other_options = Question(questions[0].question, ("a", "b", "c", "d"), 0)
    assert repeated_rows([*questions[:3], again, other_options, questions[2]]) == [(3, 1), (4, 0), (5, 2)]


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^questions: .*none\.jsonl'"):
        read_questions("questions", str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match=r"^questions: '.*empty\.jsonl' "):
        read_questions("questions", str(tmp_path / "empty.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"question": ')
    with pytest.raises(InputError, match=r"^questions: .*broken\.jsonl': "):
        read_questions("questions", str(tmp_path / "broken.jsonl"))


def test_shuffling_moves_the_answer_with_its_option(questions):
    rng = random.Random(1)
    letters = []
    for question in questions * 20:
        shuffled = question.shuffled(rng)
        assert sorted(shuffled.options) == sorted(question.options)
        assert shuffled.options[shuffled.answer] == question.options[question.answer]
        assert shuffled.digest == question.digest
        letters.append(shuffled.answer)
    assert all(abs(letters.count(i) / len(letters) - 0.25) < 0.05 for i in range(4))


def test_equal_options_keep_their_own_places():
    question = Question("Which?", ("yes", "no", "no", "no"), 1)
    assert {question.shuffled(random.Random(i)).answer for i in range(50)} == {0, 1, 2, 3}
