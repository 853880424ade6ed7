"""The files that a path stands for, and the shards that they are cut into."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.data.decoders import read_shard
from modeling_pure.data.shards import Shard, split_files
from modeling_pure.errors import InputError
from modeling_pure.files import ask_hub, find_files, identity, split_of
from modeling_pure.medqa.question_files import files_to_read
from modeling_pure.records import open_records
from tests.conftest import write_jsonl


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.parquet", "d.json.gz", "notes.md", "deep/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def names(files: list[str]) -> list[str]:
    return [file.rsplit("/", 1)[-1] for file in files]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a.jsonl"], ["a.jsonl"]),
        (["*.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["."], ["a.jsonl", "b.jsonl", "c.parquet", "d.json.gz"]),
        (["**/*.txt", "b.jsonl"], ["e.txt", "b.jsonl"]),
        (["file://{folder}/*.jsonl"], ["a.jsonl", "b.jsonl"]),
    ],
)
def test_files_of_a_path(folder, paths, expected):
    paths = [path.format(folder=folder) if "://" in path else str(folder / path) for path in paths]
    assert names(find_files("sources.x", paths).taken) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none*.jsonl", r"'.*none\*\.jsonl'"),
        ("notes.md", r"'.*notes\.md'.*\.parquet, \.txt"),
        ("deep/none", "'.*deep/none'"),
    ],
)
def test_what_cannot_be_streamed_is_refused(folder, path, message):
    with pytest.raises(InputError, match=rf"^sources\.x: .*{message}"):
        find_files("sources.x", [str(folder / path)])


def test_an_empty_file_is_refused(folder):
    (folder / "a.jsonl").write_text("")
    with pytest.raises(InputError, match=r"^sources\.x: '.*a\.jsonl' "):
        find_files("sources.x", [str(folder)])


def test_only_uncompressed_lines_are_cut(folder):
    (folder / "a.jsonl").write_text("{}\n" * 10)
    files = [str(folder / name) for name in ("a.jsonl", "c.parquet", "d.json.gz")]
    assert split_files("key", files, shard_bytes=12) == [
        Shard(files[0], 0, 12),
        Shard(files[0], 12, 24),
        Shard(files[0], 24, 30),
        Shard(files[1]),
        Shard(files[2]),
    ]


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), shard_bytes=st.integers(1, 60))
def test_every_line_is_in_one_shard_wherever_shards_end(tmp_path_factory, lengths, shard_bytes):
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    texts = ["x" * (length + 1) for length in lengths]
    file.write_text("".join(f'{{"t":"{text}"}}\n' for text in texts))
    shards = split_files("key", [str(file)], shard_bytes=shard_bytes)
    assert [text for shard in shards for _, text in read_shard("key", shard, "t", 1)] == texts


@pytest.mark.parametrize("name", ["wiki[2024].jsonl", "what?.jsonl", "a b#c%20.jsonl", "*.jsonl", "[en]/part.jsonl"])
def test_a_path_that_exists_is_not_a_glob(tmp_path, name):
    file, decoy = tmp_path / name, tmp_path / "wiki2.jsonl"
    for one in (file, decoy):
        one.parent.mkdir(exist_ok=True)
        one.write_text('{"text": "x"}\n')
    for path in (file, f"file://{file}" if name != "what?.jsonl" else file):
        assert find_files("sources.x", [str(path)]).taken == [str(path)]
    assert [record["text"] for record in open_records("questions", str(file))] == ["x"]
    if file.parent != tmp_path:
        for path in (file.parent, file.parent / "*.jsonl"):
            assert find_files("sources.x", [str(path)]).taken == [str(file)]


def test_endings_in_upper_case_and_ndjson_are_read(tmp_path):
    for name in ("a.JSONL", "b.Parquet", "c.ndjson", "d.json.GZ", "e.TXT"):
        (tmp_path / name).write_text("{}\n")
    assert len(find_files("sources.x", [str(tmp_path)]).taken) == 5
    shards = split_files("key", [str(tmp_path / "a.JSONL")], shard_bytes=2)
    assert [shard.end for shard in shards] == [2, 3]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("c4-train.00000-of-00512.json.gz", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("dev.jsonl", "validation"),
        ("wiki_val.jsonl.zst", "validation"),
        ("Test/part 1.txt", "test"),
        ("validation/train.jsonl", "validation"),
        ("lab-test-results.jsonl", None),
        ("latest.jsonl", None),
        ("trained/devices.jsonl", None),
    ],
)
def test_the_split_that_a_name_means(name, split):
    assert split_of(name) == split


SPLITS = ["train-0.jsonl", "train-1.jsonl", "test-0.jsonl", "validation-0.jsonl"]


@pytest.mark.parametrize("place", ["", "data/"])
@pytest.mark.parametrize("pattern", ["", "**/*.jsonl"])
def test_of_splits_side_by_side_train_is_taken(tmp_path, place, pattern):
    (tmp_path / "data").mkdir()
    for name in [*SPLITS, "more.jsonl"]:
        (tmp_path / place / name).write_text("{}\n")
    found = find_files("sources.x", [str(tmp_path / pattern)])
    assert names(found.taken) == ["more.jsonl", "train-0.jsonl", "train-1.jsonl"]
    (left_out,) = found.left_out.values()
    assert names(left_out) == ["test-0.jsonl", "validation-0.jsonl"]
    asked_for = str(tmp_path / place / "test-*.jsonl")
    assert names(find_files("sources.x", [asked_for]).taken) == ["test-0.jsonl"]
    url = find_files("sources.x", [f"file://{tmp_path / place}/*.jsonl"])
    assert names(url.taken) == names(found.taken)


PAIRS = [
    ("pubmed-train-part-{}", "pubmed-test-part-{}"),
    ("corpus_train_v{}", "corpus_test_v{}"),
    ("c4_train_en_{}", "c4_validation_en_{}"),
    ("wiki.train.tokens.{}", "wiki.valid.tokens.{}"),
    ("train{}", "heldout{}"),
    ("train/part{}", "tests/part{}"),
]


@pytest.mark.parametrize(("train", "other"), PAIRS)
def test_a_split_in_the_middle_of_names_is_seen_beside_another_split(tmp_path, train, other):
    for number in range(3):
        for name in (train.format(number), other.format(10 + number)):
            (tmp_path / f"{name}.jsonl").parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}.jsonl").write_text("{}\n")
    found = find_files("sources.x", [f"{tmp_path}/**/*.jsonl"])
    assert found.taken == sorted(f"{tmp_path}/{train.format(number)}.jsonl" for number in range(3))
    validation = find_files("sources.x", [f"{tmp_path}/**/*.jsonl"], splits=("validation", "test", "train"))
    assert validation.taken == sorted(f"{tmp_path}/{other.format(10 + number)}.jsonl" for number in range(3))


def test_questions_are_those_of_the_requested_split(tmp_path):
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", [{"name": name}])) for name in ("train", "dev", "test")}
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        assert files_to_read("questions", str(tmp_path), split) == [files[name]]
    assert files_to_read("questions", files["dev"], "train") == [files["dev"]]


def test_other_files_of_a_folder_are_reported(tmp_path):
    for name in ("a.jsonl", "b.csv", "c.arrow", "dataset_infos.json", "README.md", ".hidden", "deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    found = find_files("sources.x", [str(tmp_path)])
    assert names(found.taken) == ["a.jsonl"]
    left_out = sorted(name for files in found.left_out.values() for name in names(files))
    assert left_out == ["README.md", "b.csv", "c.arrow", "d.jsonl", "dataset_infos.json"]
    described = found.describe()
    assert "1 file, 3 bytes" in described
    assert all(part in described for part in ("d.jsonl", ".csv", ".arrow"))
    assert names(find_files("sources.x", [str(tmp_path / "*.json*")]).taken) == ["a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "deep/d.jsonl").unlink()
    with pytest.raises(InputError, match=r"^sources\.x: .*\.csv.*\.arrow"):
        find_files("sources.x", [str(tmp_path)])


def test_a_file_of_the_hub_is_one_file_at_every_revision():
    plain = "hf://datasets/owner/name/en/a.jsonl"
    assert identity(plain) == identity("hf://datasets/owner/name@0123abc/en/a.jsonl")
    assert identity(plain) != identity("hf://datasets/owner/name/en/b.jsonl")


def test_a_file_is_taken_once_by_any_path(folder):
    (folder / "link.jsonl").symlink_to(folder / "a.jsonl")
    (folder / "hard.jsonl").hardlink_to(folder / "a.jsonl")
    paths = [f"{folder}/a.jsonl", f"{folder}/deep/../a.jsonl", f"file://{folder}/a.jsonl", f"{folder}/*.jsonl"]
    found = find_files("sources.x", paths)
    assert names(found.taken) == ["a.jsonl", "b.jsonl"]
    assert sum(map(len, found.left_out.values())) == 5


def test_one_object_over_many_lines_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{\n  "data": [\n    {"text": "x"}\n  ]\n}\n')
    with pytest.raises(InputError, match=r"^sources\.x: '.*a\.json' .*jq -c"):
        split_files("sources.x", [str(tmp_path / "a.json")])


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (1, 2), (2, 2)])
def test_a_hub_that_does_not_find_a_data_set_is_asked_again(failures, calls):
    made = []

    def call() -> str:
        made.append(1)
        if len(made) <= failures:
            raise FileNotFoundError("busy")
        return "found"

    if failures < 2:
        assert ask_hub("sources.x", "owner/name", call) == "found"
    else:
        with pytest.raises(InputError, match=r"^sources\.x: .*'owner/name': busy"):
            ask_hub("sources.x", "owner/name", call)
    assert len(made) == calls
