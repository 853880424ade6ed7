"""Question files: the records of files and Hub data sets, and the fields of records in every published layout.

A file holds JSON lines, an array, or several data sets by name, perhaps compressed, or parquet.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..compression import DECOMPRESSION_ERRORS, DECOMPRESSORS, decompress
from ..errors import InputError, first_line
from ..files import files_of_split, local_files, looks_local, names_in, require_files, splits_of
from ..records import open_records

Fields = Mapping[str, Any]
LETTERS = "ABCD"
TEXT = (".jsonl", ".ndjson", ".json")
ENDINGS = (".parquet", *TEXT, *(text + packed for text in TEXT for packed in DECOMPRESSORS))


class FieldError(ValueError):
    """A field is missing, has the wrong type, or an invalid value. The message names it."""

    def __init__(self, name: str, wrong: str) -> None:
        super().__init__(f"{name}: {wrong}")


def question_records(
    key: str, path: str, config: str | None, split: str, name: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a Hub data set or of local files, each with its place, such as `row 3 of 'dev.jsonl'`.

    Args:
        path: a Hub id, or a local file, glob or folder of `ENDINGS` in any case. If file names tell splits apart, only
            those of `split` are read.
        config: the configuration on the Hub, or the data set in a file that holds several, such as MIRAGE's.
        name: the data set in such a file if `config` is None.

    Raises:
        InputError: no such file or data set, or it holds no records.
    """
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if not looks_local(path, ENDINGS):
        for number, record in enumerate(open_records(key, path, config, split)):
            yield f"row {number} of '{path}'", record
        return
    for file in files_to_read(key, path, split):
        try:
            is_parquet = file.lower().endswith(".parquet")
            records = pq.read_table(file).to_pylist() if is_parquet else json_records(key, file, config, name)
        except (*DECOMPRESSION_ERRORS, ValueError, RecursionError, pa.ArrowException) as error:
            raise InputError(f"{key}: cannot read '{file}': {first_line(error)}") from error
        for number, record in enumerate(records):
            place = f"row {number} of '{file}'"
            if not isinstance(record, dict):
                raise InputError(
                    f"{key}: {place} is not a question: expected an object, found {json.dumps(record)[:40]}"
                )
            yield place, record


def files_to_read(key: str, path: str, split: str) -> list[str]:
    """The files of a split at a local path; `InputError` for unknown endings, or if it has no such split."""
    files = require_files(key, path, local_files(path, ENDINGS))
    for file in files:
        if not file.lower().endswith(ENDINGS):
            raise InputError(f"{key}: cannot read '{file}'; expected one of {', '.join(ENDINGS)}")
    names = names_in(path, files)
    if split == "train" and "train" not in splits_of(names).values() and Path(path).is_dir():  # a glob may name others
        found = ", ".join(names.values())
        raise InputError(f"{key}: '{path}' holds no file of the train split, only {found}; name a file instead")
    return files_of_split(names, split)[0]


def json_records(key: str, file: str, config: str | None, name: str | None) -> list[Any]:
    """The records of a file of lines, of one array, or of one object."""
    content = decompress(Path(file).read_bytes())
    try:
        if (zero := content.find(b"\0")) >= 0:  # valid UTF-8, but not JSON
            raise UnicodeDecodeError("utf-8", content, zero, zero + 1, "zero byte")
        data = parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        likely = "UTF-16" if b"\0" in content else "WINDOWS-1252"
        raise InputError(
            f"{key}: '{file}' is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}); "
            f"convert it: iconv -f {likely} -t UTF-8"
        ) from error
    return data if isinstance(data, list) else records_of_object(key, file, data, config, name)


def parse(text: str) -> Any:
    """Parse a text as one JSON value, or as a list of the values of its lines; ValueError if it is neither."""
    try:
        return load(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            values += [load(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return values


def load(text: str) -> Any:
    """Parse a JSON value; ValueError also for a repeated key, of which Python would take the last."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if len(counts) < len(pairs):
            raise ValueError(f"key {counts.most_common(1)[0][0]!r} occurs twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=checked)


def is_question(value: Any) -> bool:
    """Whether a value has the fields of a question."""
    return isinstance(value, dict) and bool({"question", "sent1"} & {field.lower() for field in value})


def records_of_object(key: str, file: str, data: Any, config: str | None, name: str | None) -> list[Any]:
    """The records of an object: a single question, questions by id, or one of several data sets by name."""
    if isinstance(data, dict) and data:
        if is_question(data) or not all(isinstance(value, dict | list) for value in data.values()):
            return [data]
        if any(map(is_question, data.values())):
            return [*data.values()]
        only = next(iter(data)) if len(data) == 1 else None
        chosen = config or (name if name in data else only)
        if chosen not in data:
            raise InputError(f"{key}: '{file}' holds {', '.join(data)}; set one of them as the configuration")
        records = [*data[chosen].values()] if isinstance(data[chosen], dict) else data[chosen]
        if any(map(is_question, records)):
            return records
    expected = "expected an object per line, an array of objects, or objects by id"
    raise InputError(f"{key}: '{file}' holds no questions; {expected}")


def checked_text(name: str, value: Any) -> str:
    """The value of a text field; `FieldError` if it is not text."""
    if not isinstance(value, str):
        raise FieldError(name, f"expected text, found {json.dumps(value, default=str)[:40]}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(name, "holds half of a surrogate pair, which is not a character") from error
    return value


def checked_texts(name: str, value: Any) -> list[str]:
    """The value of a field that holds a list of texts; `FieldError` if it is not."""
    if not isinstance(value, list):
        raise FieldError(name, f"expected a list of texts, found {json.dumps(value, default=str)[:40]}")
    return [checked_text(f"{name}[{i}]", one) for i, one in enumerate(value)]


def present(record: Fields, *names: str) -> str | None:
    """The first of these fields that has a value."""
    return next((name for name in names if record.get(name) is not None), None)


def required_text(record: Fields, *names: str) -> str:
    """The text of the first of these fields that is present; `FieldError` if none is, or it is blank."""
    if not (value := optional_text(record, *names)).strip():
        raise FieldError(present(record, *names) or names[0], "missing or empty")
    return value


def optional_text(record: Fields, *names: str) -> str:
    """The text of the first of these fields that is present, or an empty one."""
    name = present(record, *names)
    return "" if name is None else checked_text(name, record[name])


def four_options(record: Fields) -> list[str]:
    """Options A to D, from `options` or `choices`, from `opa` to `opd`, or from `ending0` to `ending3`."""
    if name := present(record, "options", "choices"):
        expected, options = [f"{name}.{letter}" for letter in LETTERS], options_by_field(name, record[name])
    else:
        name, expected = "opa", [f"op{letter.lower()}" for letter in LETTERS]
        if "opa" not in record:
            name, expected = "ending0", [f"ending{i}" for i in range(len(LETTERS))]
        options = {field: record[field] for field in record if field in expected or re.fullmatch(r"ending\d+", field)}
    found = sorted(field for field, option in options.items() if option is not None)
    if found != expected:  # five options are another task, and lm-evaluation-harness's prompt needs four
        raise FieldError(name, f"expected {', '.join(expected)}; found {', '.join(found) or 'none'}")
    return [checked_text(field, options[field]) for field in expected]


def options_by_field(name: str, value: Any) -> dict[str, Any]:
    """Options by field name, such as `options.A`, from a mapping, a list of texts, or bigbio's `key` and `value`."""
    if isinstance(value, list) and not any(isinstance(one, Mapping) for one in value):
        return {f"{name}.{letter}": option for letter, option in zip(ascii_uppercase, value, strict=False)}
    if isinstance(value, Mapping) and {*value} == {"key", "value"} and isinstance(value["key"], list):
        texts = value["value"] if isinstance(value["value"], list) else []
        pairs = [*zip(value["key"], texts, strict=False)]
    elif isinstance(value, Mapping):
        pairs = [*value.items()]
    elif isinstance(value, list) and all(isinstance(one, Mapping) and {*one} >= {"key", "value"} for one in value):
        pairs = [(one["key"], one["value"]) for one in value]
    else:
        raise FieldError(name, "expected a mapping of letters, a list of texts, or a list of key and value")
    options: dict[str, Any] = {}
    for letter, option in pairs:
        field = f"{name}.{letter.upper() if isinstance(letter, str) and len(letter) == 1 else letter}"
        if field in options:
            raise FieldError(field, "occurs twice")
        options[field] = option
    return options


def right_answer(record: Fields, options: list[str]) -> int:
    """The index of the right option, from `answer_idx`, `label`, `cop` or `answer`.

    An index counts from 0 and may be a letter. `answer` may also be the option's text; it must agree with the others.
    """
    answers = record.get("answer")
    if isinstance(answers, list) and len(answers) == 1:  # bigbio's
        record = {**record, "answer": answers[0]}
    fields = [name for name in ("answer_idx", "label", "cop") if name in record]
    name, answer = present(record, *fields) or next(iter(fields), None), present(record, "answer")
    if name is None and answer is None:
        raise FieldError("answer_idx", "missing, and so is answer")
    meant = all_meant(answer, record[answer], options) if answer else []
    if name is None:
        if len({options[index].strip() for index in meant}) > 1:  # options with the same text count as one
            raise FieldError("answer", f"{record['answer']!r} is a letter and another option's text; add answer_idx")
        return min(meant)
    index = by_index(name, record[name], len(options))
    if answer and index not in meant:
        raise FieldError("answer", f"{record[answer]!r} is not option {LETTERS[index]}, which {name} names")
    return index


def by_index(name: str, value: Any, number: int) -> int:
    """The index that a letter or an integer stands for."""
    if isinstance(value, str):
        letter = value.strip().upper()
        if len(letter) == 1 and letter in LETTERS[:number]:
            return LETTERS.index(letter)
        value = int(letter) if letter.isdecimal() else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < number:
        raise FieldError(name, f"expected A to {LETTERS[number - 1]} or 0 to {number - 1}, found {value!r}")
    return value


def all_meant(name: str, value: Any, options: list[str]) -> list[int]:
    """The indices of all options that a value may mean; `FieldError` if there are none."""
    texts = [i for i, option in enumerate(options) if isinstance(value, str) and option.strip() == value.strip()]
    if texts and value.strip().isdecimal():  # an option's text rather than an index
        return texts
    try:
        return [by_index(name, value, len(options)), *texts]
    except FieldError:
        if not texts:
            raise
        return texts
