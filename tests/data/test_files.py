"""What a source's path stands for, and how its files are cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.data.files import Piece, find_files, split_files
from modeling_pure.data.readers import read_piece
from modeling_pure.errors import InputError


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
    assert names(find_files("sources.x", paths)) == expected


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
    assert split_files("key", files, piece_bytes=12) == [
        Piece(files[0], 0, 12),
        Piece(files[0], 12, 24),
        Piece(files[0], 24, 30),
        Piece(files[1]),
        Piece(files[2]),
    ]


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), piece_bytes=st.integers(1, 60))
def test_every_line_is_in_one_piece_wherever_pieces_end(tmp_path_factory, lengths, piece_bytes):
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    texts = ["x" * (length + 1) for length in lengths]
    file.write_text("".join(f'{{"t":"{text}"}}\n' for text in texts))
    pieces = split_files("key", [str(file)], piece_bytes=piece_bytes)
    assert [text for piece in pieces for _, text in read_piece("key", piece, "t", 1)] == texts
