"""What is held out is decided once, is the same for every reader, and is never trained on."""

from collections import Counter
from itertools import islice

import pytest

from modeling_pure.data.held_out import split_questions, validation_mixture
from modeling_pure.data.sources import parse_sources
from modeling_pure.errors import InputError
from tests.conftest import question_row, write_jsonl
from tests.data.conftest import documents_in


def test_held_out_text_is_not_trained_on(make_mixture, tokenizer):
    mixture = make_mixture()
    held_out = validation_mixture(mixture.opened, mixture.tokenize, 32, 1000)
    trained = list(islice(mixture, 1500))
    for name in ("finepdfs", "c4"):
        kept = documents_in(held_out, tokenizer, name)
        assert kept <= set(range(40))
        assert len(kept) > 10
        seen = documents_in(trained, tokenizer, name)
        assert seen <= set(range(40, 300))
        assert len(seen) > 100


def test_held_out_documents_may_lie_in_several_files(make_mixture, tmp_path):
    for number in range(4):
        rows = [{"text": f"part {5 * number + i}: fever and cough"} for i in range(5)]
        write_jsonl(tmp_path / f"{number}.jsonl", rows)
    given = {"part": {"path": str(tmp_path), "weight": 1, "validation_documents": 7, "max_epochs": 1}}
    mixture = make_mixture(given, max_seq_length=4)
    assert mixture.opened[0].rows.held_out == {0: 5, 1: 2}
    documents = mixture.packed_rows("part").documents.read(10**6)
    assert sorted(int(text.split()[1][:-1]) for text in documents) == list(range(7, 20))


def test_validation_rows_are_in_proportion_and_never_repeat_a_document(make_mixture):
    mixture = make_mixture()
    rows = validation_mixture(mixture.opened, mixture.tokenize, 32, 10_000)
    assert len(rows) > 20
    assert len({row["input_ids"].tobytes() for row in rows}) == len(rows)
    counts = Counter(row["source"] for row in rows)
    assert all(abs(counts[one.name] - len(rows) * one.weight) < 1 for one in mixture.sources)
    assert len(validation_mixture(mixture.opened, mixture.tokenize, 32, 15)) == 15
    with pytest.raises(InputError, match=r"^sources: .*\b8000\b"):
        validation_mixture(mixture.opened, mixture.tokenize, 8_000, 10)


def test_a_validation_path_is_read_instead(make_mixture, sources, tmp_path):
    held_out = write_jsonl(tmp_path / "held.jsonl", [{"text": f"held {i}: fever"} for i in range(9)])
    given = {"c4": {"path": sources["c4"]["path"], "weight": 1, "validation_path": str(held_out)}}
    opened = make_mixture(given).opened[0]
    assert opened.held_out == [f"held {i}: fever" for i in range(9)]
    assert opened.rows.held_out == {}
    assert make_mixture({"c4": {**given["c4"], "validation_documents": 4}}).opened[0].held_out == opened.held_out[:4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"content": "one"}],
            r"a\.jsonl.*\b0\b.*'text'.*\['content'\]",
        ),
        ([{"text": "one"}] * 5, r"'.*a\.jsonl' .*\b5\b.*\bvalidation_documents .*\b64\b"),
        ([{"text": None}] * 300, r".*\brow 100 .*'.*a\.jsonl': "),
    ],
)
def test_a_source_without_documents_is_refused_at_once(make_mixture, tmp_path, rows, message):
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=rf"^sources\.c4: .*{message}"):
        make_mixture({"c4": {"path": str(path), "weight": 1}})


@pytest.mark.parametrize("max_epochs", [None, 1])
def test_a_source_that_holds_out_all_it_has_is_refused(make_mixture, tmp_path, max_epochs):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"fever {i}"} for i in range(10)])
    source = {"path": str(path), "weight": 1, "validation_documents": 8, "max_epochs": max_epochs}
    make_mixture({"c4": source}, world_size=2).check_readers(1 if max_epochs else 3)
    with pytest.raises(InputError, match=r"^sources\.c4: "):
        make_mixture({"c4": {**source, "validation_documents": 10}}, world_size=2).check_readers(3)


def test_a_validation_path_inside_the_path_is_refused(make_mixture, tmp_path):
    for name in ("train", "validation"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(30)])
    source = {"path": str(tmp_path), "weight": 1, "validation_path": str(tmp_path / "validation.jsonl")}
    with pytest.raises(InputError, match=r"^sources\.web\.validation_path: '.*validation\.jsonl' "):
        make_mixture({"web": source})


def test_no_copy_of_a_dev_question_is_trained_on(corpus, questions, tmp_path):
    dev = write_jsonl(
        tmp_path / "dev.jsonl", [question_row(question.reordered((1, 0, 3, 2))) for question in questions[:7]]
    )
    given = {"path": str(corpus / "questions.jsonl"), "weight": 1, "format": "medqa", "validation_path": str(dev)}
    train, held_out = split_questions(*parse_sources({"usmle": given}), 0.0)
    assert [question.digest for question in held_out] == [question.digest for question in questions[:7]]
    assert train
    assert not {question.digest for question in train} & {question.digest for question in held_out}
