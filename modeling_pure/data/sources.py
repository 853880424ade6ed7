"""The sources of the mixture, as a recipe states them, checked before anything is read."""

from dataclasses import InitVar, dataclass, fields
from fractions import Fraction
from math import lcm
from typing import Any

from ..errors import InputError
from ..medqa.formats import checked_formats

FORMATS = ("text", "medqa")
TEXT_FIELDS = ("config", "column", "validation_path", "passages")
COUNT_FIELDS = ("validation_documents", "max_epochs", "num_passages")
NUM_PASSAGES, PASSAGES_SHARE = 3, 0.5


@dataclass(frozen=True)
class Source:
    """One source of the mixture; the recipe holds a mapping of these fields under the source's name.

    Args:
        path: a Hub id, a URL, or local files (a file, a glob or a folder); or a list of these.
        weight: the source's share of all training tokens; the weights of a recipe add up to 1.
        config: the Hub data set's configuration (`en` for C4).
        format: `text` reads a column of text; `medqa` writes each question as the exam prompt with its answer.
        answer_formats: how the questions of a medqa source are answered, with the share of each format.
        passages: folder of books for a medqa source. The `num_passages` (3) best passages for a question precede a
            share of the questions (`passages_share`, 0.5). All three are None without books.
        column: the column that holds the text.
        validation_path: held-out rows of this source; without it the first `validation_documents` documents of a text
            source are held out, and the questions that `medqa.questions` calls dev of a medqa source.
        validation_documents: how many documents of a text source are read for validation at most.
        max_epochs: how often a document may come; then the other sources get this one's share, in proportion.
        section: the mapping of the recipe that the source stands in.
    """

    name: str
    path: str | list[str]
    weight: Fraction
    config: str | None = None
    format: str = "text"
    answer_formats: dict[str, float] | None = None  # None for text
    passages: str | None = None
    num_passages: int | None = None
    passages_share: float | None = None
    column: str = "text"
    validation_path: str | None = None
    validation_documents: int = 64
    max_epochs: int | None = None
    section: InitVar[str] = "sources"

    def __post_init__(self, section: str) -> None:
        object.__setattr__(self, "section", section)  # not a field: `asdict` gives what a recipe holds

    @property
    def key(self) -> str:
        """The recipe key that error messages name."""
        return f"{vars(self)['section']}.{self.name}"

    @property
    def paths(self) -> list[str]:
        """All paths."""
        return [self.path] if isinstance(self.path, str) else self.path


def parse_sources(sources: dict[str, Any] | None) -> list[Source]:
    """The recipe's `sources` mapping as checked `Source`s, in the recipe's order.

    Raises:
        InputError: names the key and what was expected.
    """
    if not isinstance(sources, dict) or not sources:
        raise InputError("sources: expected a mapping of source names, each with 'path' and 'weight'")
    parsed = [parse_source(f"sources.{name}", entry) for name, entry in sources.items()]
    total = sum((source.weight for source in parsed), Fraction())
    if abs(total - 1) > Fraction(1, 10**6):
        shares = ", ".join(f"{source.name} {float(source.weight):g}" for source in parsed)
        raise InputError(f"sources: the weights add up to {float(total):g}, expected 1 ({shares})")
    return parsed


def parse_validation_sources(entries: dict[str, Any] | None, mixture: list[Source]) -> list[Source]:
    """The recipe's `validation_sources`: texts outside the mixture, with a path and no weight.

    Raises:
        InputError: names the key and what was expected.
    """
    sources = []
    for name, entry in (entries or {}).items():
        key = f"validation_sources.{name}"
        if not isinstance(entry, dict) or {"weight", "max_epochs", "validation_path"} & set(entry):
            raise InputError(f"{key}: expected a mapping with 'path', and nothing about training, found {entry!r}")
        sources.append(parse_source(key, {**entry, "weight": 1}))
        if sources[-1].format != "text" or name in [source.name for source in mixture]:
            raise InputError(f"{key}: expected a text source with a name that the mixture does not have")
    return sources


def parse_source(key: str, entry: dict[str, Any]) -> Source:
    """One entry of a recipe's mapping of sources, by its key in the recipe."""
    section, name = key.split(".", 1)
    if not isinstance(entry, dict):
        raise InputError(f"{key}: expected a mapping with 'path' and 'weight', found {entry!r}")
    known = [field.name for field in fields(Source) if field.name != "name"]
    for unknown in set(entry) - set(known):
        raise InputError(f"{key}.{unknown}: unknown key; expected one of {known}")
    for required in ("path", "weight"):
        if entry.get(required) is None:
            raise InputError(f"{key}.{required}: missing")
    check_kinds(key, entry)
    weight = entry["weight"]
    try:
        # Through the decimal text: 0.45 becomes 9/20, which the mixture then reaches exactly.
        weight = Fraction(str(weight))
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{key}.weight: expected a number between 0 and 1, found {entry['weight']!r}") from error
    if not 0 < weight <= 1:
        raise InputError(f"{key}.weight: expected a number above 0 and up to 1, found {entry['weight']!r}")
    text_format = entry.get("format", "text")
    if text_format not in FORMATS:
        raise InputError(f"{key}.format: expected one of {list(FORMATS)}, found {text_format!r}")
    checked = {"answer_formats": source_formats(key, entry), **source_passages(key, entry)}
    return Source(**{**entry, **checked, "name": name, "weight": weight, "section": section})


def source_formats(key: str, entry: dict[str, Any]) -> dict[str, float] | None:
    """The answer formats of an entry: letters only unless a medqa source states others."""
    if entry.get("format") == "medqa":
        formats = entry.get("answer_formats")
        return checked_formats(f"{key}.answer_formats", "letter" if formats is None else formats)
    if entry.get("answer_formats") is not None:
        raise InputError(f"{key}.answer_formats: a text source has no answers; remove it, or set format to medqa")
    return None


def source_passages(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The books of an entry, with the defaults filled in; nothing if it has none."""
    folder, share = entry.get("passages"), entry.get("passages_share")
    if folder == "":
        raise InputError(f"{key}.passages: empty; set it to a folder of books, or remove it")
    if folder is None:
        for field in ("num_passages", "passages_share"):
            if entry.get(field) is not None:
                raise InputError(f"{key}.{field}: there are no passages; set {key}.passages to a folder of books")
        return {}
    if entry.get("format") != "medqa":
        raise InputError(f"{key}.passages: a text source has no questions; remove it, or set format to medqa")
    if share is not None and (not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1):
        raise InputError(f"{key}.passages_share: expected a number above 0 and up to 1, found {share!r}")
    number = entry.get("num_passages")
    return {
        "num_passages": NUM_PASSAGES if number is None else number,
        "passages_share": PASSAGES_SHARE if share is None else float(share),
    }


def check_kinds(key: str, entry: dict[str, Any]) -> None:
    """Raise `InputError` where a field of an entry holds another kind of value than it should."""
    paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise InputError(f"{key}.path: expected text or a list of texts, found {entry['path']!r}")
    if len(paths) > 1 and entry.get("format") == "medqa":
        raise InputError(f"{key}.path: a medqa source has one path, found {len(paths)}")
    for field in TEXT_FIELDS:
        if not isinstance(entry.get(field, ""), str | None):
            raise InputError(f"{key}.{field}: expected text, found {entry[field]!r}")
    for field in COUNT_FIELDS:
        value = entry.get(field)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{key}.{field}: expected a whole number above 0, found {value!r}")


def integer_weights(sources: list[Source]) -> dict[str, int]:
    """The weights as the smallest integers in the same proportion: 45/25/20/10 % gives 9, 5, 4, 2."""
    denominator = lcm(*(source.weight.denominator for source in sources))
    return {source.name: int(source.weight * denominator) for source in sources}
