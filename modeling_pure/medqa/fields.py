"""The fields of a question's row, each with its type, in the layouts that data sets of this field have."""

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

Row = Mapping[str, Any]
LETTERS = "ABCD"
KEYED = {"key", "value"}  # bigbio's options


class FieldError(ValueError):
    """A field is missing, of another type, or says what cannot be. The message names it."""

    def __init__(self, name: str, wrong: str) -> None:
        super().__init__(f"{name}: {wrong}")


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, int):
        return f"the number {value}"
    if isinstance(value, float):
        return f"the fraction {value}"
    names = ((str, "text"), (Mapping, "a mapping"), (list, "a list"))
    return next((name for of, name in names if isinstance(value, of)), f"a {type(value).__name__}")


def checked_text(name: str, value: Any) -> str:
    """The value of a field that holds text."""
    if not isinstance(value, str):
        raise FieldError(name, f"expected text, found {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(name, "holds half of a surrogate pair, which is no character") from error
    return value


def checked_texts(name: str, value: Any) -> list[str]:
    """The value of a field that holds a list of texts."""
    if not isinstance(value, list):
        raise FieldError(name, f"expected a list of texts, found {kind(value)}")
    return [checked_text(f"{name}[{i}]", one) for i, one in enumerate(value)]


def present(row: Row, *names: str) -> str | None:
    """The first of these fields that holds something."""
    return next((name for name in names if row.get(name) is not None), None)


def required_text(row: Row, *names: str) -> str:
    """The text of the first of these fields that is there; it may not be blank."""
    name = present(row, *names)
    if name is None:
        raise FieldError(names[0], "missing")
    if not (value := checked_text(name, row[name])).strip():
        raise FieldError(name, "empty")
    return value


def optional_text(row: Row, *names: str) -> str:
    """The text of the first of these fields that is there, or an empty one."""
    name = present(row, *names)
    return "" if name is None else checked_text(name, row[name])


def four_options(row: Row) -> list[str]:
    """The options A to D: of `options` or `choices`, of `opa` to `opd`, or of `ending0` to `ending3`."""
    if name := present(row, "options", "choices"):
        expected, options = [f"{name}.{letter}" for letter in LETTERS], by_letter(name, row[name])
    else:
        name, expected = "opa", [f"op{letter.lower()}" for letter in LETTERS]
        if "opa" not in row:
            name, expected = "ending0", [f"ending{i}" for i in range(len(LETTERS))]
        options = {field: row[field] for field in row if field in expected or re.fullmatch(r"ending\d+", field)}
    found = sorted(field for field, option in options.items() if option is not None)
    if found != expected:  # five make another task; with three, lm-evaluation-harness's prompt cannot be written
        raise FieldError(name, f"expected {', '.join(expected)}; found {', '.join(found) or 'none'}")
    return [checked_text(field, options[field]) for field in expected]


def by_letter(name: str, value: Any) -> dict[str, Any]:
    """Options by field, `options.A`: of a mapping, a list of texts, or `{key, value}` as a list or as two lists."""
    if isinstance(value, Mapping) and {*value} == KEYED and isinstance(value["key"], list):
        texts = value["value"] if isinstance(value["value"], list) else []
        value = [{"key": key, "value": text} for key, text in zip(value["key"], texts, strict=False)]
    if isinstance(value, Mapping):
        value = [{"key": str(letter), "value": option} for letter, option in value.items()]
    if not isinstance(value, list):
        raise FieldError(name, f"expected a mapping of letters or a list, found {kind(value)}")
    if not any(isinstance(one, Mapping) for one in value):
        return {f"{name}.{letter}": option for letter, option in zip(ascii_uppercase, value, strict=False)}
    keyed: dict[str, Any] = {}
    for i, one in enumerate(value):
        if not isinstance(one, Mapping) or not {*one} >= KEYED:
            raise FieldError(f"{name}[{i}]", f"expected key and value, found {kind(one)}")
        letter = checked_text(f"{name}[{i}].key", one["key"])
        field = f"{name}.{letter.upper() if len(letter) == 1 else letter}"
        if field in keyed:
            raise FieldError(field, "is there twice")
        keyed[field] = one["value"]
    return keyed


def right_answer(row: Row, options: list[str]) -> int:
    """The index of the right option: `answer_idx`, `label` or `cop`, which `answer` must agree with; or `answer`.

    An index counts from 0 and may be a letter; `answer` may also be the option's text.
    """
    answers = row.get("answer")
    if isinstance(answers, list) and len(answers) == 1:  # bigbio's
        row = {**row, "answer": answers[0]}
    fields = [name for name in ("answer_idx", "label", "cop") if name in row]
    name, answer = present(row, *fields) or next(iter(fields), None), present(row, "answer")
    if name is None:
        if answer is None:
            raise FieldError("answer_idx", "missing, and so is answer")
        return by_any(answer, row[answer], options)
    index = by_index(name, row[name], len(options))
    if answer and index not in all_meant(answer, row[answer], options):
        raise FieldError("answer", f"{row[answer]!r} is not option {LETTERS[index]}, which {name} names")
    return index


def by_index(name: str, value: Any, number: int) -> int:
    """The index that a letter or a whole number gives."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) == 1 and text.upper() in LETTERS[:number]:
            return LETTERS.index(text.upper())
        if not text.isdecimal():
            raise FieldError(name, f"{value!r} is none of {', '.join(LETTERS[:number])}")
        value = int(text)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FieldError(name, f"expected a letter or a whole number, found {kind(value)}")
    if not 0 <= value < number:
        raise FieldError(name, f"{value} is not 0 to {number - 1}")
    return value


def by_any(name: str, value: Any, options: list[str]) -> int:
    """The index that a letter, a whole number or an option's text gives; options of one text are as good as one."""
    meant = all_meant(name, value, options)
    if len({options[index].strip() for index in meant}) > 1:
        raise FieldError(name, f"{value!r} is a letter and the text of another option; give answer_idx too")
    return min(meant)


def all_meant(name: str, value: Any, options: list[str]) -> list[int]:
    """The indices of all options that a value may mean, at least one."""
    texts = [i for i, option in enumerate(options) if isinstance(value, str) and option.strip() == value.strip()]
    try:
        index = by_index(name, value, len(options))
    except FieldError:
        if not texts:
            if isinstance(value, str):
                raise FieldError(name, f"{value!r} is neither an option's text nor its letter") from None
            raise
        return texts
    is_number = isinstance(value, str) and value.strip().isdecimal()
    return texts if texts and is_number else [index, *texts]
