"""Validation documents are chosen once, are the same for every worker, and are never trained on."""

import gzip
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from modeling_pure.data.arguments import parse_sources
from modeling_pure.data.mixture import Mixture
from modeling_pure.data.opening import (
    split_questions,
)
from modeling_pure.data.validation import outside_sequences, validation_mixture
from modeling_pure.errors import InputError
from tests.conftest import question_row, write_jsonl
from tests.data.conftest import documents_in


def test_validation_text_is_not_trained_on(make_mixture, tokenizer):
    mixture = make_mixture()
    held_out = validation_mixture(mixture.data.sources, mixture.tokenize, 32, 1000)
    trained = list(islice(mixture, 1500))
    for name in ("finepdfs", "c4"):
        kept = documents_in(held_out, tokenizer, name)
        assert kept <= set(range(40))
        assert len(kept) > 10
        seen = documents_in(trained, tokenizer, name)
        assert seen <= set(range(40, 300))
        assert len(seen) > 100


def test_validation_documents_may_lie_in_several_files(make_mixture, tmp_path):
    for number in range(4):
        records = [{"text": f"part {5 * number + i}: fever and cough"} for i in range(5)]
        write_jsonl(tmp_path / f"{number}.jsonl", records)
    given = {"part": {"path": str(tmp_path), "weight": 1, "validation_documents": 7, "max_epochs": 1}}
    mixture = make_mixture(given, max_seq_length=4)
    assert mixture.data.sources[0].records.validation_records == {0: 5, 1: 2}
    documents = mixture.packed_source("part").documents.read(10**6)
    assert sorted(int(text.split()[1][:-1]) for text in documents) == list(range(7, 20))


def test_validation_sequences_are_in_proportion_and_never_repeat_a_document(make_mixture):
    mixture = make_mixture()
    sequences = validation_mixture(mixture.data.sources, mixture.tokenize, 32, 10_000)
    assert len(sequences) > 20
    assert len({one["input_ids"].tobytes() for one in sequences}) == len(sequences)
    counts = Counter(one["source"] for one in sequences)
    assert all(abs(counts[source.name] - len(sequences) * source.weight) < 1 for source in mixture.sources)
    assert len(validation_mixture(mixture.data.sources, mixture.tokenize, 32, 15)) == 15
    with pytest.raises(InputError, match=r"^sources: .*\b8000\b"):
        validation_mixture(mixture.data.sources, mixture.tokenize, 8_000, 10)


def test_a_validation_path_is_read_instead(make_mixture, sources, tmp_path):
    held_out = write_jsonl(tmp_path / "held.jsonl", [{"text": f"held {i}: fever"} for i in range(9)])
    given = {"c4": {"path": sources["c4"]["path"], "weight": 1, "validation_path": str(held_out)}}
    opened = make_mixture(given).data.sources[0]
    assert opened.validation_texts == [f"held {i}: fever" for i in range(9)]
    assert opened.records.validation_records == {}
    assert (
        make_mixture({"c4": {**given["c4"], "validation_documents": 4}}).data.sources[0].validation_texts
        == opened.validation_texts[:4]
    )


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"content": "one"}],
            r"a\.jsonl.*\b0\b.*'text'.*\['content'\]",
        ),
        ([{"text": "one"}] * 5, r"'.*a\.jsonl' .*\b5\b.*\bvalidation_documents .*\b64\b"),
        ([{"text": None}] * 300, r".*\brecord 100 .*'.*a\.jsonl': "),
    ],
)
def test_a_source_without_documents_is_refused_at_once(make_mixture, tmp_path, records, message):
    path = write_jsonl(tmp_path / "a.jsonl", records)
    with pytest.raises(InputError, match=rf"^sources\.c4: .*{message}"):
        make_mixture({"c4": {"path": str(path), "weight": 1}})


@pytest.mark.parametrize("max_epochs", [None, 1])
def test_a_source_that_holds_out_all_it_has_is_refused(make_mixture, tmp_path, max_epochs):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"fever {i}"} for i in range(10)])
    source = {"path": str(path), "weight": 1, "validation_documents": 8, "max_epochs": max_epochs}
    make_mixture({"c4": source}, world_size=2).check_workers(1 if max_epochs else 3)
    with pytest.raises(InputError, match=r"^sources\.c4: "):
        make_mixture({"c4": {**source, "validation_documents": 10}}, world_size=2).check_workers(3)


def write_texts(folder: Path, *names: str) -> list[str]:
    """Paths of files with 30 documents that name their origin."""
    for name in names:
        write_jsonl(folder / f"{name}.jsonl", [{"text": f"{name} {i}", "title": f"title {i}"} for i in range(30)])
    return [str(folder / f"{name}.jsonl") for name in names]


def read_all(mixture: Mixture) -> list[str]:
    """All documents of one epoch of every source."""
    return [text for name in mixture.names for text in mixture.packed_source(name).documents.read(10**9, 10**5)]


def web(path: object, **kwargs) -> dict:
    return {"path": path, "weight": 0.5, "validation_documents": 11, "max_epochs": 1, **kwargs}


def test_a_validation_path_inside_the_path_is_refused_unless_its_name_tells_it_apart(make_mixture, tmp_path):
    write_texts(tmp_path, "a", "b", "validation")
    for name in ("a", "b"):
        held_out = str(tmp_path / f"{name}.jsonl")
        with pytest.raises(InputError, match=rf"^sources\.web\.validation_path: '.*{name}\.jsonl' .*sources\.web"):
            make_mixture({"web": web(str(tmp_path), weight=1, validation_path=held_out)})
    mixture = make_mixture({"web": web(str(tmp_path), weight=1, validation_path=str(tmp_path / "validation.jsonl"))})
    assert {text.split()[0] for text in read_all(mixture)} == {"a", "b"}


@pytest.mark.parametrize("way", ["path", "link", "hard link", "glob", "folder", "url"])
def test_no_source_trains_on_what_another_holds_out(make_mixture, tmp_path, way):
    """Its own path, a link and a folder, as `validation_path` and as `validation_sources`."""
    (tmp_path / "other").mkdir()
    a, b = write_texts(tmp_path, "a", "b")
    paths = {"path": b, "link": str(tmp_path / "other" / "link.jsonl"), "hard link": str(tmp_path / "hard.jsonl")}
    paths |= {"glob": str(tmp_path / "b*.jsonl"), "folder": str(tmp_path / "other"), "url": f"file://{b}"}
    (tmp_path / "other" / "link.jsonl").symlink_to(b)
    if way == "hard link":
        (tmp_path / "hard.jsonl").hardlink_to(b)
    with pytest.raises(InputError, match=r"^sources\.one\.validation_path: .*b\.jsonl' of sources\.two"):
        make_mixture({"one": web(a, validation_path=paths[way]), "two": web(b)})
    with pytest.raises(InputError, match=r"^validation_sources\.outside: .*b\.jsonl' of sources\.two"):
        make_mixture({"one": web(a), "two": web(b)}, validation_sources={"outside": {"path": paths[way]}})


@pytest.mark.parametrize("second", ["glob", "link", "two sources"])
def test_a_file_by_two_paths_is_trained_on_once(make_mixture, tmp_path, second):
    a, b = write_texts(tmp_path, "a", "b")
    (tmp_path / "link.jsonl").symlink_to(a)
    given = {
        "glob": {"one": web([str(tmp_path / "a*.jsonl"), str(tmp_path / "*.jsonl")], weight=1)},
        "link": {"one": web([str(tmp_path / "link.jsonl"), a, b], weight=1)},
        "two sources": {"one": web(a), "two": web([a, b])},
    }[second]
    mixture = make_mixture(given)
    texts, held_out = read_all(mixture), [text for one in mixture.data.sources for text in one.validation_texts]
    assert max(Counter(texts).values()) == 1
    assert not set(texts) & set(held_out)
    assert len(texts) + len(held_out) == 60
    assert sum(len(names) for one in mixture.data.sources for names in one.files.left_out.values()) > 0


def test_a_source_whose_files_are_all_another_ones_is_refused(make_mixture, tmp_path):
    (a,) = write_texts(tmp_path, "a")
    with pytest.raises(InputError, match=r"^sources\.two\.path: .*sources\.one"):
        make_mixture({"one": web(a), "two": web(a)})


def test_two_columns_of_one_file_validate_on_the_same_records(make_mixture, tmp_path):
    (a,) = write_texts(tmp_path, "a")
    mixture = make_mixture({"text": web(a), "title": web(a, column="title", validation_documents=4)})
    numbers = Counter(int(text.split()[1]) for text in read_all(mixture))
    assert numbers == dict.fromkeys(range(11, 30), 2)


def test_a_copy_of_a_validation_text_is_not_trained_on_in_any_file(make_mixture, tmp_path):
    a, b = write_texts(tmp_path, "a", "b")
    (tmp_path / "copy.jsonl.gz").write_bytes(gzip.compress(Path(a).read_bytes()))
    mixture = make_mixture({"one": web(a), "two": web([b, str(tmp_path / "copy.jsonl.gz")])})
    texts = Counter(read_all(mixture))
    assert not set(texts) & {text for one in mixture.data.sources for text in one.validation_texts}
    assert texts == {f"a {i}": 2 for i in range(11, 30)} | {f"b {i}": 1 for i in range(11, 30)}


def test_a_validation_folder_gives_its_validation_split(make_mixture, tmp_path):
    a, *_ = write_texts(tmp_path, "a")
    folder = tmp_path / "splits"
    folder.mkdir()
    for name in ("train", "validation"):
        write_jsonl(folder / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(30)])
    (one,) = make_mixture({"web": web(a, weight=1) | {"validation_path": str(folder)}}).data.sources
    assert one.validation_texts[0] == "validation 0"
    mixture = make_mixture({"web": web(a, weight=1)}, validation_sources={"two": {"path": str(folder)}})
    (outside,) = mixture.data.outside
    assert outside.validation_texts[0] == "validation 0"


def test_files_of_one_document_are_one_sources_whatever_its_column(make_mixture, tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"note {i} fever")
    with pytest.raises(InputError, match=r"^sources\.two\.path: .*sources\.one\b"):
        make_mixture({"one": web(str(tmp_path)), "two": web(str(tmp_path)) | {"column": "body"}})


def test_texts_outside_the_mixture_are_read_in_sequences_of_their_source(make_mixture, tokenizer, tmp_path):
    a, b, c = write_texts(tmp_path, "a", "b", "c")
    entry = {"path": [b, c], "validation_documents": 40}
    mixture = make_mixture({"one": web(a, weight=1)}, validation_sources={"two": entry})
    (outside,) = mixture.data.outside
    assert outside.validation_texts == [f"b {i}" for i in range(30)] + [f"c {i}" for i in range(10)]
    sequences = outside_sequences([outside], mixture.tokenize, mixture.sequence_length, 200)
    assert {one["source"] for one in sequences} == {"two"}
    assert tokenizer.decode(sequences[0]["input_ids"]).startswith("b 0")


def test_the_files_of_questions_are_reported(make_mixture, sources, questions, tmp_path):
    folder = tmp_path / "exam"
    folder.mkdir()
    for name in ("train", "dev"):
        write_jsonl(folder / f"{name}.jsonl", map(question_row, questions))
    (folder / "more.csv").write_text("a,b")
    opened = make_mixture(sources | {"usmle": sources["usmle"] | {"path": str(folder)}}).data
    described = opened.describe()["files of usmle"]
    assert described.startswith("1 file, ")
    assert all(name in described for name in ("dev.jsonl", "more.csv"))


def test_a_configuration_of_local_files_is_reported_as_ignored(make_mixture, tmp_path):
    a, b = write_texts(tmp_path, "a", "b")
    described = make_mixture({"one": web(a) | {"config": "en"}, "two": web(b)}).data.describe()
    assert re.search(r"\bconfig en\b", described["files of one"])
    assert "config" not in described["files of two"]


def test_a_dead_link_is_refused(make_mixture, tmp_path):
    write_texts(tmp_path, "a")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"^sources\.web: .*b\.jsonl'"):
        make_mixture({"web": web(str(tmp_path), weight=1)})


def test_the_error_explains_that_a_text_file_is_one_document(make_mixture, tmp_path):
    (tmp_path / "a.txt").write_text("fever\n\ncough\n")
    with pytest.raises(InputError, match=r"^sources\.web: .*a\.txt' .*\.jsonl.*\bvalidation_documents\b"):
        make_mixture({"web": web(str(tmp_path / "a.txt"), weight=1)})


def test_no_copy_of_a_dev_question_is_trained_on(corpus, questions, tmp_path):
    dev = write_jsonl(
        tmp_path / "dev.jsonl", [question_row(question.reordered((1, 0, 3, 2))) for question in questions[:7]]
    )
    given = {"path": str(corpus / "questions.jsonl"), "weight": 1, "format": "medqa", "validation_path": str(dev)}
    train, held_out, _ = split_questions(*parse_sources({"usmle": given}), 0.0)
    assert [question.digest for question in held_out] == [question.digest for question in questions[:7]]
    assert train
    assert not {question.digest for question in train} & {question.digest for question in held_out}
