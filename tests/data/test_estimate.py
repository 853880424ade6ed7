"""The size of a source, estimated from its first documents, is near the truth."""

import bz2
import gzip
import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import WORDS


def tokens_per_epoch(mixture, source: int = 0) -> float:
    opened = mixture.data.sources[source]
    return opened.records.tokens_per_epoch(mixture.tokenize, opened.validation_texts)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "jsonl.bz2", "txt"])
@pytest.mark.parametrize("files", [1, 3])
def test_the_estimate_is_near_the_count(make_mixture, tmp_path, tmp_path_factory, kind, files):
    rng = random.Random(0)
    texts = []
    for file in range(files):
        part = [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(1200)]
        texts += part
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part).encode()
        path = tmp_path / f"{file}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": part}), path)
        elif kind == "txt":
            path.write_text("\n".join(part))
        else:
            compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.bz2": bz2.compress}[kind]
            path.write_bytes(compress(lines))
    validation = shutil.copy(path, tmp_path_factory.mktemp("validation"))
    source = {"path": str(tmp_path), "weight": 1, "validation_path": str(validation)}
    mixture = make_mixture({"text": source})
    documents = ["\n".join(texts)] if kind == "txt" else texts
    tokens = sum(map(len, mixture.tokenize(documents)))
    assert abs(tokens_per_epoch(mixture) / tokens - 1) < 0.15


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_a_large_file_is_sampled(make_mixture, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("modeling_pure.data.source_records.SAMPLE_BYTES", 50_000)
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(10_000)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path = tmp_path / f"a.{kind}"
    path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    mixture = make_mixture({"text": {"path": str(path), "weight": 1}})
    tokens = sum(map(len, mixture.tokenize(texts)))
    estimate = tokens_per_epoch(mixture)
    assert estimate != tokens
    assert abs(estimate / tokens - 1) < 0.25


def test_questions_are_counted(make_mixture):
    mixture = make_mixture()
    usmle = mixture.data.sources[-1]
    texts = [text for _, text in usmle.records.read(0, 0, 0)]
    assert tokens_per_epoch(mixture, -1) == sum(map(len, mixture.tokenize(texts)))


def test_a_broken_or_empty_first_file_is_skipped(make_mixture, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 without an end")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    texts = [f"fever {i}" for i in range(500)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet")
    mixture = make_mixture({"text": {"path": str(tmp_path), "weight": 1}}, skip_broken_files=True)
    tokens = sum(map(len, mixture.tokenize(texts)))
    assert 0.8 * tokens <= tokens_per_epoch(mixture) < 1.2 * tokens


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_records_without_text_are_not_expected(make_mixture, tmp_path, kind):
    texts = [f"fever {i} " + "cough " * 20 for i in range(2000)]
    for file in range(4):
        records = [{"text": text if i % 4 == 0 else None, "id": i} for i, text in enumerate(texts)]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{file}.parquet")
        elif kind == "json":
            (tmp_path / f"{file}.json").write_text(json.dumps(records))
        else:
            (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    mixture = make_mixture({"text": {"path": str(tmp_path), "weight": 1, "validation_documents": 20}})
    tokens = 4 * sum(map(len, mixture.tokenize(texts[::4])))
    assert abs(tokens_per_epoch(mixture) / tokens - 1) < 0.15
