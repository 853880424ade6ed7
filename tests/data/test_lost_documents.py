"""The limit on losses is in documents, and the same however many workers share a source."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_pure.data.documents import DOCUMENT_BYTES, FREE_FAULTS, Documents, redistribute_documents
from modeling_pure.data.remote import SourceFailed
from modeling_pure.data.shards import split_files
from modeling_pure.data.source_records import TextRecords
from modeling_pure.errors import InputError
from tests.conftest import through_checkpoint, write_jsonl
from tests.data.conftest import NumberedRecords

KEY = "sources.web"
SHARED = [600, 400]  # records of shards that workers share
WHOLE = [25] * 40  # shards that are assigned whole


def outcome(records: NumberedRecords, worker: int = 0, num_workers: int = 1, state=None) -> tuple[int, str | None]:
    """The documents of one epoch, and the first number in the error that ended it."""
    documents = Documents(records, 0, worker, num_workers, max_epochs=1)
    if state:
        documents.load_state_dict(through_checkpoint(state))
    given = 0
    try:
        while texts := documents.read(10**9, 50):
            given += len(texts)
    except SourceFailed as error:
        return given, str(error).split()[1]
    return given, None


def bad_records(share: float) -> frozenset[int]:
    """The numbers of a share of a thousand records, spread evenly."""
    return frozenset(record for record in range(1000) if int(record * share) < int((record + 1) * share))


@pytest.mark.parametrize("share", [0.1, 0.14, 0.2, 0.37])
@pytest.mark.parametrize("num_workers", [2, 4, 7])
def test_workers_that_share_records_stop_where_one_alone_does(share, num_workers):
    records = NumberedRecords(SHARED, bad_records(share))
    given, error = outcome(records)
    assert (error is None) == (share < 0.15)  # 100 and a twentieth
    outcomes = [outcome(records, worker, num_workers) for worker in range(num_workers)]
    assert {worker_error for _, worker_error in outcomes} == {error}
    assert sum(worker_given for worker_given, _ in outcomes) == given


@pytest.mark.parametrize("cut", [3, 60])
def test_a_resumed_worker_stops_where_it_would_have(cut):
    records = NumberedRecords(SHARED, bad_records(0.37))
    straight, error = outcome(records, 1, 2)
    documents = Documents(records, 0, 1, 2, max_epochs=1)
    documents.read(10**9, cut)
    given, resumed_error = outcome(records, 1, 2, documents.state_dict())
    assert error is not None
    assert resumed_error == error
    assert given == straight - cut


@pytest.mark.parametrize(("bad", "stops"), [(2, False), (10, True)])
def test_what_all_workers_of_whole_shards_lose_is_summed(make_mixture, tmp_path, bad, stops):
    """Each of 32 files of 25 lines has some bad ones: up to 80 of a worker's 200, which are free for one."""
    for file in range(32):
        lines = ["{" if i < bad else json.dumps({"text": f"fever {file} {i} " + "x " * 20}) for i in range(25)]
        (tmp_path / f"{file:02d}.jsonl").write_text("\n".join(lines) + "\n")
    source = {"path": str(tmp_path), "weight": 1, "validation_documents": 1, "max_epochs": 1}
    mixture, states = make_mixture({"web": source}), []
    mixture.window_characters = 100
    for worker in range(4):
        *_, record = islice(mixture.sequences_of_worker(worker, 4), 130)
        states.append(through_checkpoint(record["data_state"]))
    assert all(sum(state["sources"]["web"]["read"]["skipped"].values()) <= FREE_FAULTS for state in states)
    if stops:
        with pytest.raises(SourceFailed, match=r"^sources\.web: .*max_skipped.*\bnot JSON"):
            mixture.progress(states)
        mixture.arguments.on_source_failure = "redistribute"
    assert mixture.progress(states)["web"]["skipped"] == sum(
        sum(state["sources"]["web"]["read"]["skipped"].values()) for state in states
    )


def read_all(path: Path, **kwargs) -> Documents:
    documents = Documents(TextRecords(KEY, split_files(KEY, [str(path)])), max_epochs=1, **kwargs)
    while documents.read(10**9, 500):
        pass
    return documents


def test_a_record_counts_as_the_documents_that_its_bytes_would_be(tmp_path):
    """Five records that are whole files in one object each, among a hundred good ones."""
    records = [{"text": f"fever {i}"} for i in range(100)]
    long = {"data": ["x" * 1000] * (30 * DOCUMENT_BYTES // 1000)}
    path = write_jsonl(tmp_path / "web.jsonl", [*records, *[long] * 5])
    with pytest.raises(SourceFailed, match=r"^sources\.web: 1\d\d .*\['data'\]"):
        read_all(path)
    good = write_jsonl(tmp_path / "good.jsonl", [{"text": "x" * 30 * DOCUMENT_BYTES}] * 100 + [long] * 5)
    assert read_all(good).skipped == {"no text": 5}  # a twentieth, of text as of records


def test_a_text_that_is_too_long_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_pure.data.decoders.MAX_CHARACTERS", 500 * DOCUMENT_BYTES)
    path = write_jsonl(tmp_path / "web.jsonl", [{"text": "fever"}, {"text": "x" * 501 * DOCUMENT_BYTES}])
    assert read_all(path).skipped == {"too long": 1}


def test_a_text_file_that_cannot_be_used_is_lost_with_all_its_bytes(tmp_path):
    """Notes beside one file of thousands of documents, or five that are not UTF-8."""
    for i in range(30):
        (tmp_path / f"{i:02d}.txt").write_text(f"fever {i}")
    for i in range(5):
        (tmp_path / f"latin{i}.txt").write_bytes(b"caf\xe9 " * (30 * DOCUMENT_BYTES // 5))
    with pytest.raises(SourceFailed, match=r"^sources\.web: 1\d\d .*\bnot UTF-8"):
        read_folder(tmp_path)
    for file in tmp_path.glob("latin*"):
        file.unlink()
    (tmp_path / "dump.txt").write_text("fever\n\ncough\n\n" * 1_000_000)
    with pytest.raises(SourceFailed, match=r"^sources\.web: 3,\d\d\d .*\.jsonl"):
        read_folder(tmp_path)


def test_values_of_parquet_that_are_not_utf_8_are_lost_with_all_their_bytes(tmp_path):
    values = [b"fever %d" % i for i in range(100)] + [b"caf\xe9 " * (30 * DOCUMENT_BYTES // 5)] * 6
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), tmp_path / "web.parquet")
    with pytest.raises(SourceFailed, match=r"^sources\.web: 1\d\d .*\bnot UTF-8"):
        read_all(tmp_path / "web.parquet")


def read_folder(folder: Path) -> Documents:
    shards = split_files(KEY, sorted(map(str, folder.iterdir())))
    documents = Documents(TextRecords(KEY, shards), max_epochs=1)
    while documents.read(10**9, 500):
        pass
    return documents


def test_records_behind_damaged_pages_are_summed_over_the_workers(make_mixture, tmp_path):
    """Of 32 files the second half is behind a damaged page: 96 records of each worker, which are free for one."""
    for file in range(32):
        write_jsonl(tmp_path / f"{file:02d}.jsonl", [{"text": f"fever {file} {i}"} for i in range(25)])
    mixture = make_mixture({"web": {"path": str(tmp_path), "weight": 1, "validation_documents": 1}})
    losses = []
    for worker in range(4):
        documents = Documents(NumberedRecords([25] * 32, behind=range(13, 25)), 0, worker, 4, max_epochs=1)
        assert len(documents.read(10**9, 100)) == 100  # seven of its eight files, and some of the last
        losses.append(documents.counts())
    assert [read["lost"]["unusable"] for read in losses] == [7 * 12] * 4
    with pytest.raises(SourceFailed, match=r"^sources\.web: 336 "):
        mixture._check_lost("web", losses)


def test_another_number_of_workers_allows_no_more_losses():
    records, states = NumberedRecords(SHARED, bad_records(0.14)), []
    for worker in range(2):
        documents = Documents(records, 0, worker, 2, max_epochs=1)
        documents.read(10**9, 150)
        states.append(documents.state_dict())
    new = redistribute_documents(states, first=True)
    assert (
        new["lost"]["documents"]
        == sum(state["documents_read"] + sum(state["skipped"].values()) for state in states)
        > 300
    )
    assert new["seen"]["unusable"] == states[0]["seen"]["unusable"] > 30


def cut_off_parquets(folder: Path, files: int, broken: int) -> None:
    for number in range(files):
        file = folder / f"{number:02d}.parquet"
        pq.write_table(pa.table({"text": [f"fever {number} {i}" for i in range(100)]}), file)
        if number < broken:
            file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("broken", [1, 19])
def test_files_that_cannot_be_opened_stop_a_run_before_it_begins(make_mixture, tmp_path, broken):
    cut_off_parquets(tmp_path, 20, broken)
    source = {"web": {"path": str(tmp_path), "weight": 1, "max_epochs": 1}}
    with pytest.raises(InputError, match=rf"^sources\.web: .*00\.parquet'.*\b{broken} of 20 .*skip_broken_files"):
        make_mixture(source)
    mixture = make_mixture(source, skip_broken_files=True)
    (one,) = mixture.data.sources
    assert len(one.files.taken) == 20 - broken
    assert sum(map(len, one.files.left_out.values())) == broken
    documents = mixture.packed_source("web").documents
    texts = Counter(documents.read(10**9, 10**4))
    assert len(texts) == 100 * (20 - broken) - 64


def test_a_git_lfs_pointer_is_named_with_its_cure(make_mixture, tmp_path):
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=r"^sources\.web: .*a\.parquet'.*git lfs pull"):
        make_mixture({"web": {"path": str(tmp_path), "weight": 1}})


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.struct([("content", pa.string())]), pa.int64()])
def test_a_column_of_another_type_is_named_with_it(make_mixture, tmp_path, kind):
    for name in ("a", "b"):  # in whichever file it is
        values = pa.array([None] * 100, kind if name == "b" else pa.string())
        texts = values if name == "b" else pa.array([f"fever {i}" for i in range(100)])
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError) as error:
        make_mixture({"web": {"path": str(tmp_path), "weight": 1}})
    assert str(error.value).startswith("sources.web: ")
    assert all(part in str(error.value) for part in ("'text'", "b.parquet'", str(kind).split("<")[0]))


def test_texts_of_other_representations_are_read(make_mixture, tmp_path):
    texts = [f"fever {i}" for i in range(100)]
    kinds = [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]
    for number, kind in enumerate(kinds):
        pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), tmp_path / f"{number}.parquet")
    source = {"path": str(tmp_path), "weight": 1, "max_epochs": 1, "validation_documents": 1}
    documents = make_mixture({"web": source}).packed_source("web").documents
    assert Counter(documents.read(10**9, 10**4)) == dict.fromkeys(texts[1:], 4)
