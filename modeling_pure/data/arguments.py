"""Data options of a recipe and the sources it names, checked before anything is read."""

import hashlib
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.formats import checked_formats
from ..options import check_above_zero, check_choices, check_numbers, check_shares, check_texts, option

FORMATS = ("text", "medqa")
ON_SOURCE_FAILURE = ("stop", "redistribute")
TEXT_FIELDS = ("config", "column", "validation_path", "passages")
COUNT_FIELDS = ("validation_documents", "max_epochs", "num_passages")
NUM_PASSAGES, PASSAGES_SHARE = 3, 0.5

# The options that the sequences depend on: they must not change when a run resumes. The fields of a source in
# `recipe.MAY_MOVE` may change: what is found there is compared instead (`position_settings`).
FIXED_OPTIONS = ("sources", "max_seq_length", "grpo_holdout", "decontaminate")
POSITION_FIELDS = ("weight", "format", "column", "validation_documents", "answer_formats", "passages_share")


@dataclass
class DataArguments:
    """The text that a run trains on."""

    # What must not change when a run resumes.
    FIXED: ClassVar = (*FIXED_OPTIONS, "document_mask")

    tokenizer_name_or_path: str = option("openai-community/gpt2", "tokenizer: a Hub id or a folder")
    sources: dict[str, Any] | None = option(
        None, "the mixture: name -> {path, weight, config, format, column, max_epochs, ...}"
    )
    max_seq_length: int = option(2048, "tokens of a sequence")
    document_mask: bool = option(False, "keep the documents of a sequence from attending to each other")
    validation_sequences: int = option(200, "validation sequences at most, in the mixture's proportions")
    validation_sources: dict[str, Any] | None = option(
        None, "texts outside the mixture to validate on too: name -> {path, config, column, ...}"
    )
    medqa_dev_questions: int = option(0, "dev questions of the medqa source to answer at each validation, at most")
    grpo_holdout: float = option(0.0, "share of the train questions kept out of pretraining for GRPO, 0 to 1")
    decontaminate: list[str] | None = option(
        None,
        "MedQA-format files or Hub ids (their test split): documents that hold one of their questions are "
        "left out, as are those that hold a dev question of a medqa source",
    )
    max_skipped: float = option(
        0.05,
        "share of a source's documents that may be unusable, beyond the first 100, and of its files "
        "that may break off",
    )
    skip_broken_files: bool = option(False, "leave out files that cannot be opened at all instead of stopping")
    on_source_failure: str = option(
        "stop", "when a source can no longer be read: stop, or redistribute its share to the others"
    )
    streaming_timeout: float = option(300.0, "seconds for which a failing read from the network is retried")
    pretokenized_dir: str | None = option(None, "read the sequences that `pure pretokenize` wrote to this folder")

    def __post_init__(self) -> None:
        check_texts(self)
        check_choices(self, on_source_failure=ON_SOURCE_FAILURE)
        check_shares(self, "max_skipped", "grpo_holdout")
        check_numbers(self, max_seq_length=2, validation_sequences=1, medqa_dev_questions=0)
        check_above_zero(self, "streaming_timeout")

    def check_sources(self) -> None:
        """Raise `InputError` if a source, of the mixture or outside it, is wrong by itself: nothing is read."""
        parse_validation_sources(self.validation_sources or {}, self.mixture)

    @cached_property
    def mixture(self) -> "list[Source]":
        """The checked `sources`, in the recipe's order; `InputError` names a wrong key."""
        return parse_sources(self.sources)

    @cached_property
    def outside(self) -> "list[Source]":
        """The checked `validation_sources`: texts outside the mixture; `InputError` names a wrong key."""
        return parse_validation_sources(self.validation_sources, self.mixture) if self.validation_sources else []


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
        validation_path: validation documents of this source; by default the first `validation_documents` documents of
            a text source, and the questions of a medqa source that `medqa.questions` calls dev.
        validation_documents: how many documents of a text source are read for validation at most.
        max_epochs: how often a document is read at most; then the other sources get this one's share, in proportion.
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
    section: str = "sources"

    @property
    def key(self) -> str:
        """The recipe key that error messages name."""
        return f"{self.section}.{self.name}"

    @property
    def paths(self) -> list[str]:
        """All paths."""
        return [self.path] if isinstance(self.path, str) else self.path

    def facts(self) -> dict[str, Any]:
        """All fields as plain values, including those that the recipe leaves out."""
        facts = {**asdict(self), "weight": float(self.weight)}
        del facts["section"]
        return facts


def parse_sources(sources: dict[str, Any] | None) -> list[Source]:
    """Check the recipe's `sources` mapping; `InputError` names the key and what was expected."""
    if not isinstance(sources, dict) or not sources:
        raise InputError("sources: expected a mapping of source names, each with 'path' and 'weight'")
    parsed = [parse_source(f"sources.{name}", entry) for name, entry in sources.items()]
    total = sum((source.weight for source in parsed), Fraction())
    if abs(total - 1) > Fraction(1, 10**6):
        shares = ", ".join(f"{source.name} {float(source.weight):g}" for source in parsed)
        raise InputError(f"sources: the weights add up to {float(total):g}, expected 1 ({shares})")
    return parsed


def parse_validation_sources(entries: dict[str, Any], mixture: list[Source]) -> list[Source]:
    """Check the recipe's `validation_sources`: text sources outside the mixture, with a path and no weight."""
    sources = []
    for name, entry in entries.items():
        key = f"validation_sources.{name}"
        if not isinstance(entry, dict) or {"weight", "max_epochs", "validation_path"} & set(entry):
            raise InputError(f"{key}: expected a mapping with 'path' and no training options, found {entry!r}")
        sources.append(parse_source(key, {**entry, "weight": 1}))
        if sources[-1].format != "text" or name in [source.name for source in mixture]:
            raise InputError(f"{key}: expected a text source with a name that the mixture does not have")
    return sources


def parse_source(key: str, entry: dict[str, Any]) -> Source:
    """Check one source, by its key in the recipe."""
    section, name = key.split(".", 1)
    if not isinstance(entry, dict):
        raise InputError(f"{key}: expected a mapping with 'path' and 'weight', found {entry!r}")
    known = [one.name for one in fields(Source) if one.name not in ("name", "section")]
    for unknown in set(entry) - set(known):
        raise InputError(f"{key}.{unknown}: unknown key; expected one of {known}")
    for required in ("path", "weight"):
        if entry.get(required) is None:
            raise InputError(f"{key}.{required}: missing")
    check_kinds(key, entry)
    weight = share(f"{key}.weight", entry["weight"])
    if entry.get("format", "text") not in FORMATS:
        raise InputError(f"{key}.format: expected one of {list(FORMATS)}, found {entry['format']!r}")
    checked = {"answer_formats": source_formats(key, entry), **source_passages(key, entry)}
    return Source(**{**entry, **checked, "name": name, "weight": weight, "section": section})


def check_kinds(key: str, entry: dict[str, Any]) -> None:
    """Raise `InputError` if a field of a source has a value of another kind than expected."""
    paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise InputError(f"{key}.path: expected text or a list of texts, found {entry['path']!r}")
    if len(paths) > 1 and entry.get("format") == "medqa":
        raise InputError(f"{key}.path: a medqa source has one path, found {len(paths)}")
    for name in TEXT_FIELDS:
        if not isinstance(entry.get(name, ""), str | None):
            raise InputError(f"{key}.{name}: expected text, found {entry[name]!r}")
    for name in COUNT_FIELDS:
        value = entry.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{key}.{name}: expected a whole number above 0, found {value!r}")


def share(key: str, value: Any) -> Fraction:
    """A share above 0 and up to 1, exact: through its decimal text, 0.45 becomes 9/20."""
    try:
        exact = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        exact = Fraction()
    if not 0 < exact <= 1:
        raise InputError(f"{key}: expected a number above 0 and up to 1, found {value!r}")
    return exact


def source_formats(key: str, entry: dict[str, Any]) -> dict[str, float] | None:
    """The answer formats of a source: letters only unless a medqa source names others."""
    formats = entry.get("answer_formats")
    if entry.get("format") == "medqa":
        return checked_formats(f"{key}.answer_formats", "letter" if formats is None else formats)
    if formats is not None:
        raise InputError(f"{key}.answer_formats: a text source has no answers; remove it, or set format to medqa")
    return None


def source_passages(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The options of a source's books, with their defaults; empty if it has none."""
    folder = entry.get("passages")
    if folder == "":
        raise InputError(f"{key}.passages: empty; set it to a folder of books, or remove it")
    if folder is None:
        for name in ("num_passages", "passages_share"):
            if entry.get(name) is not None:
                raise InputError(f"{key}.{name}: there are no passages; set {key}.passages to a folder of books")
        return {}
    if entry.get("format") != "medqa":
        raise InputError(f"{key}.passages: a text source has no questions; remove it, or set format to medqa")
    given = {name: entry[name] for name in ("num_passages", "passages_share") if entry.get(name) is not None}
    checked = {"num_passages": NUM_PASSAGES, "passages_share": PASSAGES_SHARE, **given}
    return {**checked, "passages_share": float(share(f"{key}.passages_share", checked["passages_share"]))}


def integer_weights(sources: list[Source]) -> dict[str, int]:
    """The weights as the smallest integers in the same proportion: 45/25/20/10 % gives 9, 5, 4, 2."""
    denominator = lcm(*(source.weight.denominator for source in sources))
    return {source.name: int(source.weight * denominator) for source in sources}


def fixed_settings(arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, Any]:
    """The settings that the sequences depend on, by recipe key: those of a folder of pretokenized sequences."""
    return {
        **{name: getattr(arguments, name) for name in (*FIXED_OPTIONS, "validation_sources")},
        "sources": [source.facts() for source in arguments.mixture],  # a list, because their order matters too
        "tokenizer_name_or_path": digest(tokenizer.backend_tokenizer.to_str()),
        "seed": seed,
    }


def position_settings(fixed: dict[str, Any], listings: dict[str, str]) -> dict[str, Any]:
    """Those of the `fixed_settings` without which a position in the mixture is invalid, by recipe key.

    Args:
        listings: by source, the files or questions that its records are counted in.
    """
    position = {name: fixed[name] for name in ("seed", "max_seq_length", "tokenizer_name_or_path")}
    for source in fixed["sources"]:
        name = source["name"]
        position[f"sources.{name}"] = digest(*(source[field] for field in POSITION_FIELDS), listings[name])
    return position


def digest(*facts: object) -> str:
    """A short hash of facts."""
    return hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()[:16]
