"""Question files give the same questions in every format, layout and compression."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_pure.errors import InputError
from modeling_pure.medqa.questions import read_questions
from modeling_pure.medqa.tasks import TASKS
from tests.conftest import question_row, write_jsonl


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as compressed:
        compressed.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def by_id(rows):
    return {f"{number:04}": row for number, row in enumerate(rows)}


CONTENTS = {
    "lines": as_lines,
    "blank lines": lambda rows: "\n" + as_lines(rows).replace("\n", "\r\n\n"),
    "array": json.dumps,
    "array over lines": lambda rows: json.dumps(rows, indent=1),
    "array, a row each line": lambda rows: "[" + ",\n".join(map(json.dumps, rows)) + "]",
    "ids": lambda rows: json.dumps(by_id(rows)),
    "mirage": lambda rows: json.dumps({"medqa": by_id(rows)}),
    "mirage with others": lambda rows: json.dumps({"mmlu": by_id(rows[:1]), "medqa": by_id(rows)}, indent=1),
    "one list by name": lambda rows: json.dumps({"data": rows}),
    "byte-order mark": lambda rows: "\ufeff" + as_lines(rows),
}
LAYOUTS = {
    "by letter": lambda q: question_row(q),
    "list": lambda q: {"question": q.question, "options": list(q.options), "answer_idx": q.letter},
    "list and index": lambda q: {"question": q.question, "options": list(q.options), "answer": q.answer},
    "choices and text": lambda q: {
        "question": q.question,
        "choices": list(q.options),
        "answer": q.options[q.answer],
        "subject": "x",
    },
    "bigbio": lambda q: {
        "question": q.question,
        "answer_idx": q.letter,
        "answer": [q.options[q.answer]][0],
        "options": [{"key": k, "value": v} for k, v in reversed([*zip("ABCD", q.options, strict=True)])],
    },
    "bigbio, the answer as a list": lambda q: {
        "question": q.question,
        "choices": list(q.options),
        "answer": [q.options[q.answer]],
    },
    "letters in lower case": lambda q: {
        "question": q.question,
        "options": dict(zip("abcd", q.options, strict=True)),
        "answer_idx": q.letter.lower(),
    },
    "bigbio as columns": lambda q: {
        "question": q.question,
        "answer_idx": q.letter,
        "options": {"key": [*"ABCD"], "value": list(q.options)},
    },
    "mirage": lambda q: {
        "question": q.question,
        "options": dict(zip("ABCD", q.options, strict=True)),
        "answer": q.letter,
    },
    "medmcqa": lambda q: (
        {"question": q.question, "cop": q.answer}
        | {f"op{letter}": option for letter, option in zip("abcd", q.options, strict=True)}
    ),
    "swag": lambda q: (
        {"sent1": q.question, "label": str(q.answer)} | {f"ending{i}": option for i, option in enumerate(q.options)}
    ),
}


def same(found, questions):
    return [(q.question, q.options, q.answer) for q in found] == [(q.question, q.options, q.answer) for q in questions]


@pytest.mark.parametrize("ending", [".jsonl", ".JSON", ".ndjson", ".Jsonl.gz", ".json.bz2", ".jsonl.xz", ".json.zst"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_files_of_every_kind(content, ending, questions, tmp_path):
    path, rows = tmp_path / f"exam{ending}", [question_row(q) for q in questions[:5]]
    compression = ending.lower().removeprefix(".jsonl").removeprefix(".ndjson").removeprefix(".json")
    path.write_bytes(COMPRESS[compression](content(rows).encode()))
    assert same(read_questions("questions", str(path)), questions[:5])
    assert same(read_questions("questions", str(tmp_path)), questions[:5])


@pytest.mark.parametrize("ending", [".jsonl", ".PARQUET"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_records_of_every_layout(layout, ending, questions, tmp_path):
    path, rows = tmp_path / f"exam{ending}", [layout(q) for q in questions]
    if ending == ".jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert same(read_questions("questions", str(path)), questions)
    assert same(TASKS["medmcqa"].read("questions", str(path)), questions)


def test_one_of_several_data_sets_is_selected_by_name(questions, tmp_path):
    sets = {name: by_id([question_row(questions[i])]) for i, name in enumerate(("medqa", "medmcqa", "mmlu", "mine"))}
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(sets))
    assert read_questions("questions", str(path)) == questions[:1]
    assert TASKS["medmcqa"].read("questions", str(path)) == questions[1:2]
    assert TASKS["medmcqa"].read("questions", str(path), "mine") == questions[3:4]
    for task, config in (("mmlu_anatomy", None), ("medmcqa", "none")):  # the file joins the six subjects
        with pytest.raises(InputError, match=r"^questions: .*benchmark\.json' .*\bmmlu\b"):
            TASKS[task].read("questions", str(path), config)
    del sets["medqa"]["0000"]["answer_idx"], sets["medqa"]["0000"]["answer"]
    path.write_text(json.dumps(sets))
    with pytest.raises(InputError, match=rf"^questions: row 0 of '{path}' .*: answer_idx: "):
        read_questions("questions", str(path))


def test_pubmedqa_by_ids(tmp_path):
    rows = {"21645374": {"QUESTION": "Q?", "CONTEXTS": ["First."], "final_decision": "no", "LONG_ANSWER": "x"}}
    (tmp_path / "ori_pqal.json").write_text(json.dumps(rows))
    (question,) = TASKS["pubmedqa"].read("questions", str(tmp_path / "ori_pqal.json"))
    assert (question.context, question.answer) == ("First.", 1)


WRONG = {
    "question": (["a"], 7, None, "", "  ", "\ud800 half"),
    "options": ("ABCD", ["a"] * 3, ["a"] * 5, {"A": "x"}, ["a", "b", "c", 4], [["a"]] * 4, {"key": ["A"], "value": 1}),
    "answer_idx": ("E", "", "AB", None, 4, -1, 1.5, 2.0, True, ["A"], "4", "0.5"),
    "answer": ("none of them", 3.5, ["x"], True),
    "meta_info": (["step1"], 1, {"step": 1}),
    "explanation": (["because"], 2),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_field_of_the_wrong_type_is_named_with_its_record(field, value, questions, tmp_path):
    rows = [question_row(q) for q in questions[:3]]
    rows[1][field] = value
    path = write_jsonl(tmp_path / "exam.jsonl", rows)
    with pytest.raises(InputError, match=rf"^questions: row 1 of '{path}' .*: {field}\b") as error:
        read_questions("questions", str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "row", "field"),
    [
        ("pubmedqa", {"contexts": "First. Second."}, "contexts"),
        ("pubmedqa", {"contexts": ["First.", 2]}, "contexts"),
        ("pubmedqa", {"contexts": None, "context": "First. Second."}, "context"),
        ("pubmedqa", {"contexts": None, "context": {"contexts": "First."}}, "context"),
        ("pubmedqa", {"final_decision": ["yes"]}, "final_decision"),
        ("mmlu_anatomy", {"choices": "wxyz"}, "choices"),
        ("mmlu_anatomy", {"choices": ["w", "x", "y", None]}, "choices"),
        ("mmlu_anatomy", {"answer": 1.5}, "answer"),
        ("mmlu_anatomy", {"subject": ["anatomy"]}, "subject"),
        ("medmcqa", {"opb": 5}, "opb"),
        ("medmcqa", {"cop": 1.5}, "cop"),
        ("medmcqa", {"subject_name": 3}, "subject_name"),
        ("medmcqa", {"exp": 3}, "exp"),
    ],
)
def test_wrong_fields_are_named_in_every_task(task, row, field, tmp_path):
    good = {
        "pubmedqa": {"question": "Q?", "contexts": ["First."], "final_decision": "yes"},
        "mmlu_anatomy": {"question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 3},
        "medmcqa": {"question": "Q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 2},
    }[task]
    path = write_jsonl(tmp_path / "exam.jsonl", [good, {**good, **row}])
    with pytest.raises(InputError, match=rf"^questions: row 1 of '{path}' .*: {field}\b"):
        TASKS[task].read("questions", str(path))


def test_an_ambiguous_letter_needs_an_index(questions, tmp_path):
    row = {"question": "Which blood group?", "options": ["B", "A", "AB", "0"], "answer": "A"}
    path = write_jsonl(tmp_path / "exam.jsonl", [row])
    with pytest.raises(InputError, match=r"^questions: row 0 .*\banswer_idx\b"):
        read_questions("questions", str(path))
    write_jsonl(path, [row | {"answer_idx": "B"}, row | {"answer": "0"}, row | {"answer": 0}])
    assert [q.answer for q in read_questions("questions", str(path))] == [1, 3, 0]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"question": "caf\xe9"}'.encode("latin-1"), "0xe9 in line 1"),
        ("[]".encode("utf-16"), "UTF-16"),
        ('[{"question": "x"}]'.encode("utf-16-le"), "UTF-16"),
        (b'{"question": "x"}\n{"options": {"A": "x", "A": "y"}}', "line 2.*'A'"),
        (b'{"question": "x"}\n{"question": \n', "line 2"),
        (b'["a", "b"]', "row 0"),
        (b'{"a": {"b": 1}}', "holds no questions"),
        (b"[]", "holds no questions"),
        (b"7", "holds no questions"),
    ],
)
def test_a_file_without_questions_is_refused(content, named, tmp_path):
    path = tmp_path / "exam.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^questions: .*exam\.json'.*{named}|^questions: row 0 of"):
        read_questions("questions", str(path))


@pytest.mark.parametrize("ending", [*COMPRESS, ".parquet"])
def test_a_truncated_file_is_refused(ending, questions, tmp_path):
    path = tmp_path / (f"exam.jsonl{ending}" if ending in COMPRESS else "exam.parquet")
    if ending in COMPRESS:
        path.write_bytes(COMPRESS[ending](as_lines([question_row(q) for q in questions]).encode())[:-40])
    else:
        pq.write_table(pa.table({"question": ["x"]}), path)
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"^questions: cannot read '.*exam"):
        read_questions("questions", str(path))


def test_compression_is_detected_from_the_content(questions, tmp_path):
    rows = as_lines([question_row(q) for q in questions[:3]]).encode()
    (tmp_path / "plain.jsonl").write_bytes(gzip.compress(rows[:100]) + gzip.compress(rows[100:]))
    (tmp_path / "plain.jsonl.gz").write_bytes(rows)
    (tmp_path / "two.jsonl.zst").write_bytes(zstandard(rows[:100]) + zstandard(rows[100:]))
    assert read_questions("questions", str(tmp_path)) == questions[:3] * 3


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "exam.csv").write_text("question,answer")
    with pytest.raises(InputError, match=r"^questions: .*exam\.csv'"):
        read_questions("questions", str(tmp_path / "exam.csv"))


def test_a_clone_of_a_hub_data_set(questions, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    for i, split in enumerate(("train", "test")):
        row = pa.Table.from_pylist([question_row(questions[i])])
        pq.write_table(row, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert read_questions("questions", str(tmp_path), split="test") == questions[1:2]


def test_only_one_split_of_a_folder_is_read(questions, tmp_path):
    for i, name in enumerate(("US_train", "dev", "test-00000-of-00001")):
        write_jsonl(tmp_path / f"{name}.jsonl", [question_row(questions[i])])
    for i, split in enumerate(("train", "validation", "test")):
        assert read_questions("questions", str(tmp_path), split=split) == questions[i : i + 1]
    (tmp_path / "US_train.jsonl").unlink()
    with pytest.raises(InputError, match=r"^questions: .*dev\.jsonl"):
        read_questions("questions", str(tmp_path))
    assert read_questions("questions", str(tmp_path / "test*")) == questions[2:3]  # named by the user


def test_a_file_that_the_hub_does_not_find_is_requested_again(questions, monkeypatch):
    calls = []

    class Rows:
        def __iter__(self):
            calls.append(1)
            if len(calls) < failures:
                raise FileNotFoundError("busy")
            yield from map(question_row, questions)

    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: Rows())
    failures = 2
    assert same(read_questions("questions", "owner/name"), questions)
    failures = 9
    with pytest.raises(InputError, match="^questions: .*'owner/name'.*busy"):
        read_questions("questions", "owner/name")
