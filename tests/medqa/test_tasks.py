"""Records of each data set become questions, and invalid ones are refused."""

import pytest

from modeling_pure.errors import InputError
from modeling_pure.medqa.tasks import MEDMCQA, MMLU_MEDICAL, PUBMEDQA, TASKS
from tests.conftest import write_jsonl

MMLU = MMLU_MEDICAL[0]
ROWS = {
    "medmcqa": {"question": "Q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 2, "subject_name": "Surgery"},
    "pubmedqa": {"question": "Q?", "contexts": ["First.", "Second."], "final_decision": "maybe"},
    MMLU.name: {"question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 3, "subject": "anatomy"},
}


def read(tmp_path, name: str, row: dict):
    return TASKS[name].read("questions", str(write_jsonl(tmp_path / "rows.jsonl", [row])))[0]


def test_medmcqa(tmp_path):
    question = read(tmp_path, "medmcqa", ROWS["medmcqa"])
    assert (question.options, question.answer, question.meta_info) == (("w", "x", "y", "z"), 2, "Surgery")
    assert MEDMCQA.prompt(question) == "Question: Q?\nChoices:\nA. w\nB. x\nC. y\nD. z\nAnswer:"


@pytest.mark.parametrize(
    "row",
    [
        ROWS["pubmedqa"],
        {"QUESTION": "Q?", "CONTEXTS": ["First.", "Second."], "final_decision": "maybe"},
        {
            "question": "Q?",
            "context": {"contexts": ["First.", "Second."], "labels": ["A", "B"]},
            "final_decision": "maybe",
        },
    ],
    ids=["lower", "upper", "nested"],
)
def test_pubmedqa_in_each_of_its_layouts(tmp_path, row):
    question = read(tmp_path, "pubmedqa", row)
    assert PUBMEDQA.prompt(question) == "Abstract: First.\nSecond.\nQuestion: Q?\nAnswer:"
    assert PUBMEDQA.labels[question.answer] == "maybe"
    assert not PUBMEDQA.has_letters
    assert pytest.approx(1 / 3) == PUBMEDQA.chance


def test_mmlu(tmp_path):
    question = read(tmp_path, MMLU.name, ROWS[MMLU.name])
    assert question.letter == "D"
    assert question.meta_info == "anatomy"
    head = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    assert MMLU.prompt(question) == f"{head}Q?\nA. w\nB. x\nC. y\nD. z\nAnswer:"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("medmcqa", {"cop": -1}),
        ("medmcqa", {"cop": None}),
        ("medmcqa", {"opd": None}),
        ("pubmedqa", {"final_decision": "perhaps"}),
        ("pubmedqa", {"question": ""}),
        (MMLU.name, {"answer": 4}),
        (MMLU.name, {"choices": ["v", "w", "x", "y", "z"]}),
    ],
    ids=str,
)
def test_an_invalid_question_is_named(tmp_path, name, change):
    with pytest.raises(InputError, match=r"^questions: row 0 .*rows\.jsonl' "):
        read(tmp_path, name, {**ROWS[name], **change})
