"""The rows of question files: lines, arrays, or sets by name, as text or parquet, compressed or not."""

import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..compression import DECOMPRESSION_ERRORS, DECOMPRESSORS, decompress
from ..errors import InputError, first_line
from ..records import files_of_split, local_files, looks_local, names_in, open_records, require_files, splits_of

TEXT = (".jsonl", ".ndjson", ".json")
ENDINGS = (".parquet", *TEXT, *(text + packed for text in TEXT for packed in DECOMPRESSORS))


def question_rows(
    key: str, path: str, config: str | None, split: str, name: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a Hub data set or of local files, and where it is, such as `row 3 of 'dev.jsonl'`.

    Args:
        path: a Hub id, or a local file, glob or folder of `ENDINGS` in any case. Of a folder whose file names tell
            splits apart, only those of `split` are read.
        config: the configuration on the Hub; of a file that holds several sets, as MIRAGE's, the name of one.
        name: the set's name where `config` gives none.

    Raises:
        InputError: no such file or data set, or nothing that can be read as rows.
    """
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if not looks_local(path, ENDINGS):
        for number, row in enumerate(open_records(key, path, config, split)):
            yield f"row {number} of '{path}'", row
        return
    for file in files_to_read(key, path, split):
        rows = parquet_rows(key, file) if file.lower().endswith(".parquet") else json_rows(key, file, config, name)
        for number, row in enumerate(rows):
            place = f"row {number} of '{file}'"
            if not isinstance(row, dict):
                raise InputError(f"{key}: {place} is not a question: expected an object, found {json.dumps(row)[:40]}")
            yield place, row


def files_to_read(key: str, path: str, split: str) -> list[str]:
    """The files of a split that a local path stands for, all of known endings."""
    files = require_files(key, path, local_files(path, ENDINGS))
    for file in files:
        if not file.lower().endswith(ENDINGS):
            raise InputError(f"{key}: cannot read '{file}'; expected one of {', '.join(ENDINGS)}")
    names = names_in(path, files)
    splits = {*splits_of(names).values()}
    if split == "train" and "train" not in splits and Path(path).is_dir():  # a glob may mean them
        found = ", ".join(names.values())
        raise InputError(f"{key}: '{path}' holds no file of the train split, only {found}; name the file to take")
    return files_of_split(names, split)[0]


def parquet_rows(key: str, file: str) -> Iterator[Any]:
    """The rows of a parquet file."""
    try:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{key}: cannot read '{file}': {first_line(error)}") from error


def json_rows(key: str, file: str, config: str | None, name: str | None) -> list[Any]:
    """The rows of a file of lines, of one array, or of one object."""
    try:
        content = Path(file).read_bytes()
        content = decompress(content)
        if b"\0" in content and not content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):  # which UTF-8 text has not
            raise InputError(f"{key}: '{file}' is not UTF-8 text; convert it, as with: iconv -f UTF-16LE -t UTF-8")
        data = parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        likely = "UTF-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "WINDOWS-1252"
        raise InputError(
            f"{key}: '{file}' is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}); "
            f"convert it, as with: iconv -f {likely} -t UTF-8"
        ) from error
    except (*DECOMPRESSION_ERRORS, ValueError, RecursionError, pa.ArrowException) as error:
        raise InputError(f"{key}: cannot read '{file}': {first_line(error)}") from error
    return data if isinstance(data, list) else rows_of_object(key, file, data, config, name)


def parse(text: str) -> Any:
    """An object of each line as a list, or the one value that all lines are together; ValueError otherwise."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        first = load(lines[0][1]) if lines else []
    except json.JSONDecodeError:
        return load(text)
    if len(lines) == 1 and not is_row(first):
        return first
    rows = []
    for number, line in lines:
        try:
            rows.append(load(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def load(text: str) -> Any:
    """A JSON value; ValueError also if a key is there twice, of which Python would take the last."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(key for key in value if keys.count(key) > 1)!r} is there twice")
        return value

    return json.loads(text, object_pairs_hook=checked)


def is_row(value: Any) -> bool:
    """Whether this is a question, to judge by its fields."""
    return isinstance(value, dict) and bool({"question", "sent1"} & {field.lower() for field in value})


def rows_of_object(key: str, file: str, data: Any, config: str | None, name: str | None) -> list[Any]:
    """The rows of a single question, of questions by their ids, or of one of several sets by name."""
    if isinstance(data, dict) and data:
        if is_row(data) or not all(isinstance(value, dict | list) for value in data.values()):
            return [data]
        if any(map(is_row, data.values())):
            return [*data.values()]
        only = next(iter(data)) if len(data) == 1 else None
        chosen = config or (name if name in data else only)
        if chosen not in data:
            raise InputError(f"{key}: '{file}' holds {', '.join(data)}; name one of them as the configuration")
        rows = [*data[chosen].values()] if isinstance(data[chosen], dict) else data[chosen]
        if any(map(is_row, rows)):
            return rows
    expected = "expected an object a line, an array of objects, or objects by their ids"
    raise InputError(f"{key}: '{file}' holds no questions; {expected}")
