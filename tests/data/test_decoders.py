"""Files of lines and of arrays, plain and compressed, give the records that json and the compressors give."""

import gzip
import io
import json
import random
import re

import pyarrow as pa
import pytest

from modeling_pure.compression import ZSTD_BYTES, open_zstd
from modeling_pure.data.decoders import Fault, array_objects, read_shard
from modeling_pure.data.remote import SourceFailed
from modeling_pure.data.shards import Shard, split_files

KEY = "sources.x"
TEXTS = [f"document {i} " + "fi\u00e8vre \U0001f600 [,] {" * (i % 7) for i in range(400)]
ROWS = [{"id": i, "text": text, "more": {"list": [1, {"text": "not this"}]}} for i, text in enumerate(TEXTS)]
ARRAYS = {
    "one line": json.dumps(ROWS),
    "an object a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "indented": "\ufeff" + json.dumps(ROWS, indent=2, ensure_ascii=False),
}


def texts(path, column: str = "text", **kwargs) -> list[str | Fault]:
    (shard,) = split_files(KEY, [str(path)])
    return [text for _, text in read_shard(KEY, shard, column, 1, **kwargs)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.zst"])
@pytest.mark.parametrize("layout", ARRAYS)
def test_an_array_gives_its_objects(tmp_path, layout, suffix):
    data = ARRAYS[layout].encode()
    compress = {".gz": gzip.compress, "zst": zstd}.get(suffix[-3:], bytes)
    (tmp_path / f"a{suffix}").write_bytes(compress(data))
    assert texts(tmp_path / f"a{suffix}") == TEXTS
    assert texts(tmp_path / f"a{suffix}", start=390) == TEXTS[390:]


def test_an_array_is_read_in_parts_of_any_size():
    """The stream returns a few bytes at a time, so that every token is cut somewhere."""

    class Drops(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(7)

    assert [value for value, _ in array_objects(Drops(ARRAYS["indented"].encode()))] == ROWS
    broken_off, found = array_objects(Drops(ARRAYS["indented"].encode()[:20_000])), []
    with pytest.raises(ValueError, match="in an array"):
        found.extend(value for value, _ in broken_off)
    assert found == ROWS[: len(found)]
    assert len(found) > 50


def test_an_array_that_breaks_off_gives_what_was_before(tmp_path):
    (tmp_path / "a.json").write_text(ARRAYS["one line"][:5000])
    *before, fault = texts(tmp_path / "a.json")
    assert before == TEXTS[: len(before)]
    assert len(before) > 20
    assert fault.reason == "broken file"
    (tmp_path / "b.json").write_text('[{"text": "never clo')
    with pytest.raises(SourceFailed, match=r"^sources\.x: .*b\.json'"):
        texts(tmp_path / "b.json")


@pytest.mark.parametrize("end", ["", ",", ", ", "\n"])
def test_an_array_that_breaks_off_between_two_objects_breaks_off(tmp_path, end):
    (tmp_path / "a.json").write_text(ARRAYS["one line"].partition(', {"id": 10,')[0] + end)
    *before, fault = texts(tmp_path / "a.json")
    assert before == TEXTS[:10]
    assert fault.reason == "broken file"


def test_a_byte_of_another_encoding_costs_one_text_of_an_array(tmp_path):
    data = json.dumps(ROWS[:3]).encode().replace(b"document 1", b"document \xe9")
    (tmp_path / "a.json").write_bytes(data)
    first, bad, third = texts(tmp_path / "a.json")
    assert [first, third] == [TEXTS[0], TEXTS[2]]
    assert bad.reason == "not UTF-8"


def test_lines_that_are_lists_are_no_array(tmp_path):
    (tmp_path / "a.jsonl").write_text('["text"]\n{"text": "x"}\n')
    assert [str(text).partition(":")[0] for text in texts(tmp_path / "a.jsonl")] == ["no text", "x"]
    (tmp_path / "b.jsonl").write_text('[{"role": "user"}]\n' * 3)
    assert all("['role']" in text.detail for text in texts(tmp_path / "b.jsonl"))


def zstd(data: bytes) -> bytes:
    """Data in one zstd frame."""
    return pa.compress(data, "zstd", asbytes=True)


def frames(data: bytes, count: int) -> bytes:
    """Data in several zstd frames with a skippable one between, as parallel compressors and seekable formats write."""
    size = -(-len(data) // count)
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    return skippable.join(zstd(data[i : i + size]) for i in range(0, len(data), size))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_zstd_is_read_frame_after_frame(count):
    data = random.Random(0).randbytes(300_000) + b"x" * 300_000
    assert open_zstd(io.BytesIO(frames(data, count))).read() == data


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_zstd_that_breaks_off_is_an_error_after_its_bytes(cut):
    data = random.Random(0).randbytes(600_000)
    file, parts = open_zstd(io.BytesIO(frames(data, 3)[:-cut])), []
    with pytest.raises(OSError, match="(?i)truncated"):
        parts.extend(iter(lambda: file.read(1000), b""))
    assert data.startswith(b"".join(parts))
    assert len(b"".join(parts)) > 390_000 - ZSTD_BYTES


def test_a_text_file_has_no_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffever\n")
    assert [text for _, text in read_shard(KEY, Shard(str(tmp_path / "a.txt")), "text", 1)] == ["fever\n"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("null", "None"),
        ('""', "''"),
        ('"  "', "'  '"),
        ('["x"]', r"\['x'\]"),
        ('{"content": "x"}', r"\{'content': 'x'\}"),
        ("5", "5"),
        ("true", "True"),
    ],
)
def test_a_fault_describes_what_was_found_instead_of_text(tmp_path, value, found):
    (tmp_path / "a.jsonl").write_text(f'{{"text": {value}}}\n')
    (fault,) = texts(tmp_path / "a.jsonl")
    assert fault.reason == "no text"
    assert re.search(found, fault.detail)
