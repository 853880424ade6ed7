"""Each record of an epoch is read once, by one worker; positions resume exactly, also with other workers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pure.data.documents import Documents, redistribute_documents
from modeling_pure.data.remote import SourceFailed
from modeling_pure.data.shards import split_files
from modeling_pure.data.source_records import ExamRecords, TextRecords
from modeling_pure.medqa.formats import format_answer, format_prompt
from modeling_pure.medqa.questions import Question
from tests.conftest import through_checkpoint, write_jsonl
from tests.data.conftest import NumberedRecords


def read(documents: Documents, count: int) -> list[str]:
    return documents.read(10**9, count)


def read_all(documents: Documents) -> list[str]:
    texts = []
    while more := read(documents, 7):
        texts += more
    return texts


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=7)


@given(sizes=SIZES, num_workers=st.integers(1, 5))
def test_workers_share_every_epoch_without_overlap_or_gap(sizes, num_workers):
    records = NumberedRecords([size + num_workers for size in sizes])
    texts = [
        text
        for worker in range(num_workers)
        for text in read_all(Documents(records, 0, worker, num_workers, max_epochs=2))
    ]
    assert sorted(texts) == records.texts(epochs=2)


@given(sizes=SIZES, num_workers=st.integers(1, 4), cuts=st.lists(st.integers(0, 25), min_size=1, max_size=3))
def test_documents_resume_from_a_saved_state(sizes, num_workers, cuts):
    records = NumberedRecords([size + 2 * num_workers for size in sizes], faulty=frozenset([3]))
    straight = read(Documents(records, 0, num_workers - 1, num_workers), sum(cuts) + 20)
    documents, seen = Documents(records, 0, num_workers - 1, num_workers), []
    for cut in [*cuts, 20]:
        seen += read(documents, cut)
        state = through_checkpoint(documents.state_dict())
        documents = Documents(records, 0, num_workers - 1, num_workers)
        documents.load_state_dict(state)
        assert documents.documents_read == len(seen)
    assert seen == straight


@settings(max_examples=60)
@given(
    sizes=SIZES,
    workers=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    data=st.data(),
)
def test_another_number_of_workers_reads_the_unread_records(sizes, workers, data):
    records = NumberedRecords([size + 5 for size in sizes])
    texts, states = [], None
    for num_workers in workers:
        group = [Documents(records, 0, worker, num_workers, max_epochs=3) for worker in range(num_workers)]
        for worker, documents in enumerate(group):
            if states:
                documents.load_state_dict(through_checkpoint(redistribute_documents(states, first=worker == 0)))
            texts += read(documents, data.draw(st.integers(0, 12)))
        states = [through_checkpoint(documents.state_dict()) for documents in group]
        assert sum(state["documents_read"] for state in states) == len(texts)
    for worker in range(2):
        documents = Documents(records, 0, worker, 2, max_epochs=3)
        documents.load_state_dict(redistribute_documents(states, first=worker == 0))
        texts += read_all(documents)
    assert sorted(texts) == records.texts(epochs=3)


def test_a_source_ends_after_max_epochs():
    documents = Documents(NumberedRecords([5, 3]), max_epochs=2)
    assert len(read(documents, 100)) == 16
    assert read(documents, 1) == []


def test_a_window_ends_with_its_characters():
    documents = Documents(NumberedRecords([50]))
    assert len(documents.read(characters=1)) == 1
    assert len(documents.read(characters=20)) in (4, 5)  # each text has 5 or 6 characters


def text_records(path, **kwargs) -> TextRecords:
    return TextRecords("sources.c4", split_files("sources.c4", [str(path)], shard_bytes=2000), **kwargs)


def test_epochs_hold_the_same_documents_in_another_order(corpus):
    documents = Documents(text_records(corpus / "c4.jsonl"))
    first, second = read(documents, 300), read(documents, 300)
    assert len(set(first)) == 300
    assert sorted(first) == sorted(second)
    assert first != second
    in_file_order = [text for *_, text in text_records(corpus / "c4.jsonl").read_in_order()]
    assert sorted(first) == sorted(in_file_order)
    assert first != in_file_order


def test_records_of_a_row_group_are_shuffled_in_blocks(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(2000)])
    records = TextRecords("sources.c4", split_files("sources.c4", [str(path)]))
    order = [int(text) for _, text in records.read(0, epoch=0, start=0)]
    assert sorted(order[:512]) == list(range(512))
    assert order[:512] != list(range(512))
    assert [int(text) for _, text in records.read(0, epoch=0, start=700)] == order[700:]
    assert [int(text) for _, text in records.read(0, epoch=1, start=0)][:512] != order[:512]


def test_validation_records_are_counted_and_left_out(corpus):
    documents = Documents(text_records(corpus / "c4.jsonl", validation_records={0: 3, 1: 2}), max_epochs=1)
    assert len(read_all(documents)) == 295
    assert documents.skipped == {"validation document": 5}


def test_a_source_without_text_for_every_worker_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": ""}, {"text": None}])
    with pytest.raises(SourceFailed, match=r"^sources\.c4: a\.jsonl: .*\b1\b.*\(.*\b40 no text\)"):
        read(Documents(text_records(path)), 1)


def exam(questions, seed=0, worker=0, num_workers=1) -> Documents:
    return Documents(ExamRecords("sources.usmle", questions, seed), seed, worker, num_workers)


def test_exam_epochs_hold_the_same_questions_with_other_letters(questions):
    documents = exam(questions)
    first, second = read(documents, len(questions)), read(documents, len(questions))
    stems = [[text.split("\n")[0] for text in texts] for texts in (first, second)]
    assert set(stems[0]) == set(stems[1])
    assert len(set(stems[0])) == len(questions)
    assert stems[0] != stems[1]
    assert len(set(first) & set(second)) < len(questions) / 4


def test_exam_letters_are_balanced_over_epochs(questions):
    letters = [text.split("\nAnswer: ")[1][0] for text in read(exam(questions), 4000)]
    assert all(abs(letters.count(letter) / 4000 - 0.25) < 0.04 for letter in "ABCD")


def test_exam_workers_share_an_epoch(questions):
    stems = [text.split("\n")[0] for worker in range(3) for text in read(exam(questions, 0, worker, 3), 40)]
    assert len(set(stems)) == len(questions)


def test_exam_text_is_the_prompt_and_its_answer_whatever_the_order_of_the_options(questions):
    asked = {question.question: question for question in questions}
    for text in read(exam(questions, seed=3), 200):
        stem, *options, _ = text.split("\n")
        question = asked[stem.removeprefix("Question: ")]
        options = tuple(option[3:] for option in options)
        assert sorted(options) == sorted(question.options)
        shown = Question(question.question, options, options.index(question.options[question.answer]))
        assert text == format_prompt(shown) + format_answer(shown)
