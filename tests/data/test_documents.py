"""Documents come once a pass, in every reader's own share, and go on exactly from a saved state."""

import json
from functools import partial

import pytest

from modeling_pure.data.documents import ExamDocuments, TextDocuments
from modeling_pure.data.sources import Source
from modeling_pure.errors import InputError
from modeling_pure.medqa.prompt import format_answer, format_prompt
from modeling_pure.rows import open_rows
from tests.conftest import write_jsonl


def text_documents(path, reader=0, num_readers=1) -> TextDocuments:
    source = Source("c4", str(path), 1)
    return TextDocuments(source, partial(open_rows, source.key, source.path), reader, num_readers)


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


def test_a_pass_reads_every_document_once_in_order(corpus):
    documents = text_documents(corpus / "c4.jsonl")
    texts = documents.read(700)
    assert texts[:300] == texts[300:600]
    assert len(set(texts)) == 300
    assert documents.passes == 2


@pytest.mark.parametrize("num_readers", [2, 3, 7])
def test_readers_share_a_pass_without_overlap_or_gap(corpus, num_readers):
    shares = []
    for reader in range(num_readers):
        documents, share = text_documents(corpus / "c4.jsonl", reader, num_readers), []
        while documents.passes == 0:
            share += documents.read(1)
        shares.append(share[:-1])  # the last one began the second pass
    assert sorted(text for share in shares for text in share) == sorted(
        set(text_documents(corpus / "c4.jsonl").read(300))
    )


@pytest.mark.parametrize("cut", [0, 1, 299, 300, 301, 650])
def test_text_goes_on_from_a_saved_state(corpus, cut):
    straight = text_documents(corpus / "c4.jsonl").read(cut + 50)
    documents = text_documents(corpus / "c4.jsonl")
    documents.read(cut)
    again = text_documents(corpus / "c4.jsonl")
    again.load_state_dict(through_json(documents.state_dict()))
    middle = again.read(20)
    once_more = text_documents(corpus / "c4.jsonl")
    once_more.load_state_dict(through_json(again.state_dict()))
    assert middle + once_more.read(30) == straight[cut:]


def test_rows_without_text_are_skipped_and_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": None}, {"text": "  "}, {"text": "two"}])
    documents = text_documents(path)
    assert documents.read(2) == ["one", "two"]
    assert documents.skipped == 2


def test_a_missing_column_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"content": "one"}])
    with pytest.raises(
        InputError, match=r"sources.c4: '.*a.jsonl' has no column 'text'; its columns are \['content'\]"
    ):
        text_documents(path).read(1)


def test_a_broken_line_is_an_input_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(InputError, match="sources.c4: cannot read"):
        text_documents(tmp_path / "a.jsonl").read(2)


def test_a_source_without_text_ends_instead_of_turning_forever(tmp_path):
    with pytest.raises(InputError, match="no text"):
        text_documents(write_jsonl(tmp_path / "a.jsonl", [{"text": ""}, {"text": None}])).read(1)


def test_exam_passes_hold_the_same_questions_with_other_letters(questions):
    documents = ExamDocuments(questions, seed=0)
    first, second = documents.read(len(questions)), documents.read(len(questions))
    stems = [{text.split("\n")[0] for text in texts} for texts in (first, second)]
    assert stems[0] == stems[1] and len(stems[0]) == len(questions)
    assert [text.split("\n")[0] for text in first] != [text.split("\n")[0] for text in second]
    assert len(set(first) & set(second)) < len(questions) / 4


def test_exam_answers_stay_right_when_options_move(questions):
    right = {q.question: q.options[q.answer] for q in questions}
    for text in ExamDocuments(questions, seed=3).read(200):
        stem, *options, answer = text.split("\n")
        letter, chosen = answer.removeprefix("Answer: ").split(". ")
        assert f"{letter}. {chosen}" in options
        assert right[stem.removeprefix("Question: ")] == chosen


def test_exam_letters_are_balanced_over_passes(questions):
    letters = [text.split("\nAnswer: ")[1][0] for text in ExamDocuments(questions, seed=0).read(4000)]
    assert all(abs(letters.count(letter) / 4000 - 0.25) < 0.04 for letter in "ABCD")


@pytest.mark.parametrize("num_readers", [1, 3])
@pytest.mark.parametrize("cut", [0, 5, 40, 121])
def test_exam_goes_on_from_a_saved_state(questions, cut, num_readers):
    straight = ExamDocuments(questions, 0, num_readers - 1, num_readers).read(cut + 60)
    documents = ExamDocuments(questions, 0, num_readers - 1, num_readers)
    documents.read(cut)
    again = ExamDocuments(questions, 0, num_readers - 1, num_readers)
    again.load_state_dict(through_json(documents.state_dict()))
    assert again.read(60) == straight[cut:]


def test_exam_readers_share_a_pass(questions):
    stems = []
    for reader in range(3):
        stems += [text.split("\n")[0] for text in ExamDocuments(questions, 0, reader, 3).read(40)]
    assert len(set(stems)) == len(questions)


def test_a_source_without_questions_is_refused():
    with pytest.raises(InputError, match="0 MedQA questions are left for 1 readers"):
        ExamDocuments([], seed=0)


def test_exam_text_is_the_prompt_and_its_answer(questions):
    text = ExamDocuments(questions[:1], seed=0).read(1)[0]
    prompt, answer = text.split("Answer:")
    assert prompt.startswith(format_prompt(questions[0]).split("\n")[0])
    assert answer[2:] == format_answer(questions[0])[2:]
