"""Bad data loses only the records it is in; each is counted, and too many of them stop a run by name."""

import bz2
import errno
import gzip
import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_pure.data import decoders
from modeling_pure.data.decoders import Fault
from modeling_pure.data.documents import FREE_FAULTS, Documents
from modeling_pure.data.remote import SourceFailed
from modeling_pure.data.shards import split_files
from modeling_pure.data.source_records import TextRecords
from modeling_pure.errors import InputError
from modeling_pure.files import find_files

KEY = "sources.web"
RECORDS = 1200
BAD_RECORDS = (0, 511, 512, 700, 1199)  # at both ends of the file and of a block that is shuffled
TEXTS = [f"document {i} " + f"{i * 7919 % 10007:05d} " * 20 for i in range(RECORDS)]
LINES = [json.dumps({"text": text}).encode() for text in TEXTS]
GROUP_ROWS = 3000
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.bz2": lambda data: bz2.compress(data, 1),
}
COMPRESS |= {".jsonl.xz": lzma.compress, ".jsonl.zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
DECOMPRESSORS = {
    ".jsonl.gz": lambda: zlib.decompressobj(wbits=31),
    ".jsonl.bz2": bz2.BZ2Decompressor,
    ".jsonl.xz": lzma.LZMADecompressor,
}
BAD_LINES = {
    "cut off": (b'{"text": "half of a', "not JSON"),
    "not JSON": (b"<html>", "not JSON"),
    "nested too deep": (b"[" * 100_000, "not JSON"),
    "a number too long": (b'{"text": "x", "id": ' + b"9" * 5000 + b"}", "not JSON"),
    "no object": (b'["text"]', "no text"),
    "another column": (b'{"content": "x"}', "no text"),
    "null": (b'{"text": null}', "no text"),
    "empty": (b'{"text": ""}', "no text"),
    "only spaces": (b'{"text": " \\n\\t"}', "no text"),
    "not a text": (b'{"text": ["x"]}', "no text"),
    "another encoding": ('{"text": "caf\xe9"}'.encode("latin-1"), "not UTF-8"),
    "half of a surrogate pair": (b'{"text": "\\ud83d"}', "not UTF-8"),
    "half of a surrogate pair in UTF-8": (b'{"text": "\xed\xa0\xbd"}', "not UTF-8"),
    "zeros": (b"\0" * 64 + b"{}", "not UTF-8"),
    "too long": (json.dumps({"text": "x" * 2001}).encode(), "too long"),
}


@pytest.fixture(autouse=True)
def short_documents(monkeypatch):
    """A document is too long from 2,001 characters on."""
    monkeypatch.setattr(decoders, "MAX_CHARACTERS", 2000)


def write_lines(file: Path, lines: list[bytes]) -> Path:
    """Lines as a file, compressed as its suffix says."""
    file.parent.mkdir(exist_ok=True)
    suffix = ".jsonl" + file.name.partition(".jsonl")[2]
    file.write_bytes(COMPRESS[suffix](b"".join(line + b"\n" for line in lines)))
    return file


def write_parquet(file: Path, texts: list[str | bytes | None], group_rows: int = GROUP_ROWS) -> Path:
    """Texts, or bytes declared as text, as a parquet file with small pages."""
    values = pa.array([text.encode() if isinstance(text, str) else text for text in texts], pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(values), values.buffers(), values.null_count)
    file.parent.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"text": column}), file, row_group_size=group_rows, data_page_size=4096, use_dictionary=False
    )
    return file


def documents_of(
    files: Path | list[Path], max_epochs: int | None = 1, skip_broken: bool = False, **kwargs
) -> Documents:
    paths = [str(file) for file in (files if isinstance(files, list) else [files])]
    records = TextRecords(KEY, split_files(KEY, paths), skip_broken=skip_broken)
    return Documents(records, max_epochs=max_epochs, **kwargs)


def read_all(documents: Documents) -> list[str]:
    texts = []
    while more := read(documents, 500):
        texts += more
    return texts


def read(documents: Documents, count: int) -> list[str]:
    return documents.read(10**9, count)


def assert_counts(documents: Documents, records: int, skipped: dict[str, int]) -> None:
    """Every record of the file was either yielded or counted by the reason why not."""
    assert documents.skipped == skipped
    assert documents.documents_read + documents.skipped.total() == records


def in_reading_order(file: Path, bad: set[int] = frozenset()) -> list[str]:
    """The texts of a sound file in the order they are read in, without some of its records."""
    records = TextRecords(KEY, split_files(KEY, [str(file)])).read(0, 0, 0)
    return [text for number, text in records if number not in bad]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_loses_one_record(tmp_path, kind, suffix):
    bad_line, reason = BAD_LINES[kind]
    lines = [bad_line if i in BAD_RECORDS else line for i, line in enumerate(LINES)]
    documents = documents_of(write_lines(tmp_path / f"web{suffix}", lines))
    sound = write_lines(tmp_path / "sound" / f"web{suffix}", LINES)
    assert read(documents, 2 * RECORDS) == in_reading_order(sound, set(BAD_RECORDS))
    assert_counts(documents, RECORDS, {reason: len(BAD_RECORDS)})


def test_all_kinds_of_bad_lines_are_counted_apart(tmp_path):
    lines = [line for bad_line, _ in BAD_LINES.values() for line in (bad_line, LINES[0], b"", b"  ")]
    documents = documents_of(write_lines(tmp_path / "web.jsonl", lines))
    assert read(documents, RECORDS) == [TEXTS[0]] * len(BAD_LINES)
    assert_counts(documents, 2 * len(BAD_LINES), Counter(reason for _, reason in BAD_LINES.values()))


def test_what_looks_odd_and_is_text_is_given(tmp_path):
    texts = ["\ufeffbyte order mark", "a\0zero", "\U0001f600", "line\u2028separator", "carriage\rreturn", "x" * 2000]
    lines = [json.dumps({"text": text}, ensure_ascii=i % 2 == 0).encode() for i, text in enumerate(texts)]
    lines += [b'\xef\xbb\xbf{"text": "marked"}', b'{"text": "\\ud83d\\ude00"}', b'  {"id": NaN, "text": "spaced"}  \r']
    documents = documents_of(write_lines(tmp_path / "web.jsonl", lines))
    assert sorted(read(documents, 100)) == sorted([*texts, "marked", "\U0001f600", "spaced"])
    assert_counts(documents, len(lines), {})


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("suffix", DECOMPRESSORS)
def test_a_compressed_file_that_breaks_off_gives_the_lines_before(tmp_path, suffix, share):
    file = write_lines(tmp_path / f"web{suffix}", LINES * 3)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    whole_lines = DECOMPRESSORS[suffix]().decompress(file.read_bytes()).count(b"\n")
    documents = documents_of(file, max_skipped=1.0)
    assert Counter(read(documents, 10 * RECORDS)) == Counter((TEXTS * 3)[:whole_lines])
    assert_counts(documents, whole_lines + 1, {"broken file": 1})
    with pytest.raises(SourceFailed, match=r"^sources\.web: "):  # unless so much may be lost
        read_all(documents_of(file))


@pytest.mark.parametrize("suffix", [*DECOMPRESSORS, ".jsonl.zst"])
def test_a_compressed_file_that_is_not_one_stops_the_source_or_is_one_bad_record(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"<html>not found</html>")
    files = [tmp_path / f"a{suffix}", write_lines(tmp_path / f"b{suffix}", LINES)]
    documents = documents_of(files, skip_broken=True)
    assert sorted(read(documents, 2 * RECORDS)) == sorted(TEXTS)
    assert_counts(documents, RECORDS + 1, {"broken file": 1})
    with pytest.raises(SourceFailed, match=rf"^sources\.web: .*a{suffix}'.*skip_broken_files"):
        read_all(documents_of(files))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.xz"])
def test_a_compressed_file_that_is_damaged_ends_there(tmp_path, suffix):
    file = write_lines(tmp_path / f"web{suffix}", LINES)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"\xff" * 40 + data[len(data) // 2 + 40 :])
    documents = documents_of(file, max_skipped=1.0)
    assert RECORDS / 4 < len({*read(documents, 2 * RECORDS)} & {*TEXTS}) < RECORDS
    assert documents.skipped["broken file"] == 1


def test_an_empty_compressed_file_has_no_record(tmp_path):
    empty, full = write_lines(tmp_path / "a.jsonl.gz", []), write_lines(tmp_path / "b.jsonl.gz", LINES)
    documents = documents_of([empty, full])
    assert sorted(read(documents, 2 * RECORDS)) == sorted(TEXTS)
    assert_counts(documents, RECORDS, {})
    assert read(documents_of(empty), 1) == []
    with pytest.raises(SourceFailed, match=r"^sources\.web: a\.jsonl\.gz: "):
        read(documents_of(empty, max_epochs=None), 1)


def test_a_file_of_no_bytes_is_refused_before_a_run(tmp_path):
    write_lines(tmp_path / "b.jsonl.gz", LINES)
    (tmp_path / "a.jsonl.gz").touch()
    with pytest.raises(InputError, match=r"^sources\.web: '.*a\.jsonl\.gz' "):
        find_files(KEY, [str(tmp_path)])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no text"),
        ("", "no text"),
        (" \n", "no text"),
        (b"\xff\xfe", "not UTF-8"),
        (b"cut off in a letter \xc3", "not UTF-8"),
        (b"\xed\xa0\xbd", "not UTF-8"),
        ("x" * 2001, "too long"),
    ],
)
def test_a_bad_value_in_parquet_loses_one_record(tmp_path, value, reason):
    values = [value if i in BAD_RECORDS else text for i, text in enumerate(TEXTS)]
    documents = documents_of(write_parquet(tmp_path / "web.parquet", values, 300))
    sound = write_parquet(tmp_path / "sound" / "web.parquet", TEXTS, 300)
    assert read(documents, 2 * RECORDS) == in_reading_order(sound, set(BAD_RECORDS))
    assert_counts(documents, RECORDS, {reason: len(BAD_RECORDS)})


def damage(file: Path, group: int, share: float) -> None:
    """Overwrite 48 bytes of a row group's text, at a share of its size."""
    chunk = pq.ParquetFile(file).metadata.row_group(group).column(0)
    place = chunk.data_page_offset + int(chunk.total_compressed_size * share)
    data = bytearray(file.read_bytes())
    data[place : place + 48] = b"\xff" * 48
    file.write_bytes(data)


def long_parquet(file: Path) -> tuple[Path, list[str]]:
    """Three row groups of 3,000 records, each in many pages."""
    texts = [f"{i} {text}" for i, text in enumerate(TEXTS * 8)][: 3 * GROUP_ROWS]
    return write_parquet(file, texts), texts


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_page_that_is_damaged_costs_the_rest_of_its_row_group(tmp_path, group, share):
    file, texts = long_parquet(tmp_path / "web.parquet")
    damage(file, group, share)
    first, last = group * GROUP_ROWS, (group + 1) * GROUP_ROWS
    records = dict(TextRecords(KEY, split_files(KEY, [str(file)])).read(0, 0, 0))
    assert sorted(records) == list(range(len(texts)))
    bad = [number for number, value in sorted(records.items()) if isinstance(value, Fault)]
    assert bad == list(range(bad[0], last))
    assert first <= bad[0] <= first + GROUP_ROWS * share
    assert share < 0.9 or bad[0] > first  # the group is not given up as a whole
    documents = documents_of(file, max_skipped=0.0)
    assert Counter(read(documents, 10**6)) == Counter(texts[: bad[0]] + texts[last:])
    if len(bad) > FREE_FAULTS:  # all of what is behind the damage is lost, which is known when the file has been read
        with pytest.raises(SourceFailed, match=rf"^sources\.web: {len(bad):,} "):
            read(documents, 1)
    assert_counts(documents, len(texts), {"unreadable": 1, "after an unreadable one": len(bad) - 1})


def cut_short(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def without_footer(data: bytes) -> bytes:
    return data[: -8 - int.from_bytes(data[-8:-4], "little")]


def with_damaged_footer(data: bytes) -> bytes:
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:begin] + b"\xff" * 100 + data[begin + 100 :]


@pytest.mark.parametrize(
    "spoil", [cut_short, without_footer, with_damaged_footer, lambda data: b"PAR1", lambda _: b""]
)
def test_a_parquet_file_without_its_footer_stops_the_source_or_is_one_bad_record(
    tmp_path, spoil: Callable[[bytes], bytes]
):
    file, sound = write_parquet(tmp_path / "a.parquet", TEXTS), write_parquet(tmp_path / "b.parquet", TEXTS)
    file.write_bytes(spoil(file.read_bytes()))
    documents = documents_of([file, sound], skip_broken=True)
    assert sorted(read(documents, 2 * RECORDS)) == sorted(TEXTS)
    assert_counts(documents, RECORDS + 1, {"broken file": 1})
    with pytest.raises(SourceFailed, match=r"^sources\.web: .*a\.parquet'.*skip_broken_files"):
        read_all(documents_of([file, sound]))


def test_a_parquet_file_that_lacks_the_column_is_named(tmp_path):
    pq.write_table(pa.table({"content": ["x"], "id": [1]}), tmp_path / "web.parquet")
    with pytest.raises(SourceFailed, match=r"^sources\.web: '.*web\.parquet' .*'text'.*'content', 'id'"):
        read(documents_of(tmp_path / "web.parquet"), 1)


def bad_lines_file(folder: Path) -> Path:
    return write_lines(folder / "web.jsonl", [b"{" if i % 15 == 4 else line for i, line in enumerate(LINES)])


def broken_off_file(folder: Path) -> Path:
    file = write_lines(folder / "web.jsonl.gz", LINES * 3)
    file.write_bytes(cut_short(file.read_bytes()))
    return file


def damaged_parquet_file(folder: Path) -> Path:
    file, _ = long_parquet(folder / "web.parquet")
    damage(file, 1, 0.95)
    return file


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("make", [bad_lines_file, broken_off_file, damaged_parquet_file])
def test_a_state_saved_in_a_bad_file_resumes_exactly(tmp_path, make: Callable[[Path], Path], num_workers):
    files = [make(tmp_path), write_lines(tmp_path / "more.jsonl", LINES[:300])]
    options = {"max_epochs": 2, "max_skipped": 1.0, "worker": num_workers - 1, "num_workers": num_workers}
    straight = documents_of(files, **options)
    texts = read(straight, 10**6)
    assert straight.skipped.total() > 0 or num_workers > 1  # a single fault is one worker's
    for cut in range(0, len(texts), len(texts) // 12):
        begun = documents_of(files, **options)
        assert read(begun, cut) == texts[:cut]
        again = documents_of(files, **options)
        again.load_state_dict(json.loads(json.dumps(begun.state_dict())))
        assert again.counts() == begun.counts()
        assert read(again, 10**6) == texts[cut:]
        assert again.state_dict() == straight.state_dict()


@pytest.mark.parametrize("max_skipped", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("shard_bytes", [1 << 24, 50_000])
def test_too_many_bad_rows_stop_the_source_by_name(tmp_path, max_skipped, shard_bytes):
    lines = [b'{"broken %d"' % i if i % 3 == 1 else line for i, line in enumerate(LINES)]
    file = write_lines(tmp_path / "web.jsonl", lines)
    shards = split_files(KEY, [str(file)], shard_bytes=shard_bytes)
    assert (len(shards) > 2) == (shard_bytes < 1 << 24)
    documents = Documents(TextRecords(KEY, shards), max_epochs=1, max_skipped=max_skipped)
    given = read(documents, 10 * RECORDS)  # what came before is still given
    assert len(given) == documents.documents_read > 0
    with pytest.raises(SourceFailed) as error:
        read(documents, 10 * RECORDS)
    faults, records = documents.skipped["not JSON"], documents.documents_read + documents.skipped.total()
    assert faults > FREE_FAULTS + max_skipped * records
    assert faults - 1 <= FREE_FAULTS + max_skipped * records  # not before
    pattern = rf"sources\.web: {faults}\b.*\b{records}\b.* max_skipped .*\b{max_skipped:g}\b.*\b{faults} not JSON\)"
    place = r"record (\d+) of '(.+)'(?:.* byte (\d+))?: not JSON: .+"
    match = re.fullmatch(rf"{pattern}.*\b{place}", str(error.value))
    assert match, str(error.value)
    assert match[2] == str(file)
    data, begin = file.read_bytes(), int(match[3] or 0)
    begin = data.index(b"\n", begin - 1) + 1 if begin else 0  # a line belongs to the shard that it begins in
    assert data[begin:].splitlines()[int(match[1])].startswith(b'{"broken')


@pytest.mark.parametrize(("bad", "fails"), [(FREE_FAULTS, False), (FREE_FAULTS + 1, True)])
def test_a_hundred_bad_rows_are_free(tmp_path, bad, fails):
    documents = documents_of(write_lines(tmp_path / "web.jsonl", [b"{"] * bad + LINES[:10]), max_skipped=0)
    if fails:
        assert len(read(documents, 100)) <= 10
        with pytest.raises(SourceFailed, match=r"^sources\.web: 101\b"):
            read(documents, 100)
    else:
        assert len(read(documents, 100)) == 10


def test_a_few_bad_rows_in_many_epochs_do_not_add_up(tmp_path):
    lines = [b"{" if i % 30 == 0 else line for i, line in enumerate(LINES)]
    documents = documents_of(write_lines(tmp_path / "web.jsonl", lines), max_epochs=20, max_skipped=0)
    assert len(read(documents, 10**6)) == 20 * (RECORDS - 40)
    assert_counts(documents, 20 * RECORDS, {"not JSON": 20 * 40})


@pytest.fixture
def two_sources(tmp_path) -> dict:
    """A good source, and one of two files, the second of which a test spoils."""
    write_lines(tmp_path / "sound.jsonl", LINES)
    write_lines(tmp_path / "web" / "a.jsonl", LINES[:200])
    write_lines(tmp_path / "web" / "b.jsonl", LINES[200:400])
    paths = {"sound": str(tmp_path / "sound.jsonl"), "web": str(tmp_path / "web")}
    return {name: {"path": path, "weight": 0.5} for name, path in paths.items()}


def lose(file: Path) -> None:
    file.unlink()


def spoil(file: Path) -> None:
    write_lines(file, [b"{" + b" " * (len(line) - 1) for line in LINES[200:400]])


@pytest.mark.parametrize(("harm", "said"), [(lose, os.strerror(errno.ENOENT)), (spoil, "max_skipped 0 ")])
def test_a_source_that_fails_stops_the_run_or_leaves_its_share(
    tmp_path, two_sources, make_mixture, harm: Callable[[Path], None], said, caplog
):
    stop = make_mixture(two_sources, max_skipped=0.0)
    redistribute = make_mixture(two_sources, max_skipped=0.0, on_source_failure="redistribute")
    harm(tmp_path / "web" / "b.jsonl")
    with pytest.raises(SourceFailed, match=r"sources\.web: .*b\.jsonl'") as error:
        list(islice(stop.sequences_of_worker(), 10**4))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    records = list(islice(redistribute.sequences_of_worker(), 1000))
    assert {record["source"] for record in records[-100:]} == {"sound"}
    assert str(error.value) in caplog.text
    state = json.loads(json.dumps(records[600]["data_state"]))
    again = list(islice(redistribute.sequences_of_worker(state=state), 399))
    assert [(record["source"], record["input_ids"].tolist()) for record in again] == [
        (record["source"], record["input_ids"].tolist()) for record in records[601:]
    ]


def test_a_source_that_fails_while_a_run_resumes_leaves_its_share_too(tmp_path, two_sources, make_mixture):
    mixture = make_mixture(two_sources, on_source_failure="redistribute")
    state = next(islice(mixture.sequences_of_worker(), 20, None))["data_state"]
    assert state["drawn"]["web"] > 0
    lose(tmp_path / "web" / "a.jsonl")
    lose(tmp_path / "web" / "b.jsonl")
    records = list(islice(mixture.sequences_of_worker(state=state), 20))
    assert {record["source"] for record in records} == {"sound"}
    assert records[-1]["data_state"]["drawn"]["sound"] == state["drawn"]["sound"] + 20


def test_a_source_that_fails_while_a_run_resumes_stops_it(tmp_path, two_sources, make_mixture):
    mixture = make_mixture(two_sources)
    state = next(islice(mixture.sequences_of_worker(), 20, None))["data_state"]
    lose(tmp_path / "web" / "a.jsonl")
    lose(tmp_path / "web" / "b.jsonl")
    with pytest.raises(SourceFailed, match=rf"^sources\.web: .*\.jsonl': .*{os.strerror(errno.ENOENT)}"):
        next(mixture.sequences_of_worker(state=state))
