"""The data options and the sources of a recipe, checked before anything is read."""

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

# The options that the sequences depend on must not change on resume. Of a source, the fields in `recipe.MAY_MOVE` may
# change: the records that they lead to are compared instead (`position_settings`).
FIXED_OPTIONS = ("sources", "max_seq_length", "grpo_holdout", "decontaminate")
POSITION_FIELDS = ("weight", "format", "column", "validation_documents", "answer_formats", "passages_share")


@dataclass
class DataArguments:
    """The text that a run trains on."""

    # Options that must not change on resume.
    FIXED: ClassVar = (*FIXED_OPTIONS, "document_mask")

    tokenizer_name_or_path: str = option("openai-community/gpt2", "tokenizer: a Hub id or a folder")
    sources: dict[str, Any] | None = option(
        None, "the mixture: name -> {path, weight, config, format, column, max_epochs, ...}"
    )
    max_seq_length: int = option(2048, "tokens per sequence")
    document_mask: bool = option(False, "stop tokens from attending to other documents of their sequence")
    validation_sequences: int = option(200, "maximum number of validation sequences, in the mixture's proportions")
    validation_sources: dict[str, Any] | None = option(
        None, "more texts to validate on, outside the mixture: name -> {path, config, column, ...}"
    )
    medqa_dev_questions: int = option(0, "maximum number of medqa dev questions to answer at each validation")
    grpo_holdout: float = option(0.0, "share of the train questions reserved for GRPO, 0 to 1")
    decontaminate: list[str] | None = option(
        None,
        "files in MedQA's format, or Hub ids (their test split): documents that contain one of these questions, or a "
        "dev question of a medqa source, are left out",
    )
    max_skipped: float = option(
        0.05,
        "share of a source's documents that may be unusable, beyond the first 100; also the share of the source that "
        "may be in truncated files",
    )
    skip_broken_files: bool = option(False, "leave out files that cannot be opened, instead of stopping")
    on_source_failure: str = option(
        "stop", "what to do when a source can no longer be read: stop, or redistribute its share to the others"
    )
    streaming_timeout: float = option(300.0, "seconds to retry a failing read from the network")
    pretokenized_dir: str | None = option(
        None, "folder of sequences written by `pure pretokenize`, to read instead of the sources"
    )

    def __post_init__(self) -> None:
        check_texts(self)
        check_choices(self, on_source_failure=ON_SOURCE_FAILURE)
        check_shares(self, "max_skipped", "grpo_holdout")
        check_numbers(self, max_seq_length=2, validation_sequences=1, medqa_dev_questions=0)
        check_above_zero(self, "streaming_timeout")

    def check_sources(self) -> None:
        """Raise `InputError` if the description of a source is wrong; nothing is read."""
        parse_validation_sources(self.validation_sources or {}, self.mixture)

    @cached_property
    def mixture(self) -> "list[Source]":
        """The checked `sources`, in the order of the recipe; `InputError` names a wrong key."""
        return parse_sources(self.sources)

    @cached_property
    def outside(self) -> "list[Source]":
        """The checked `validation_sources`; `InputError` names a wrong key."""
        return parse_validation_sources(self.validation_sources, self.mixture) if self.validation_sources else []


@dataclass(frozen=True)
class Source:
    """A source of the mixture. The recipe maps the name of each source to these fields.

    Args:
        path: a Hub id, a URL, a local file, glob or folder; or a list of these.
        weight: share of all training tokens; the weights of a recipe add up to 1.
        config: configuration of a Hub data set (`en` for C4).
        format: `text` reads a column of text; `medqa` writes each question as an exam prompt with its answer.
        answer_formats: answer formats of a medqa source, with their shares; None for text.
        passages: folder of books for a medqa source. A share of the questions (`passages_share`, 0.5) comes after the
            `num_passages` (3) passages that fit it best. All three are None without books.
        column: column of a text source that holds the text.
        validation_path: validation documents; by default the first `validation_documents` documents of a text source,
            and the dev questions of a medqa source.
        validation_documents: maximum number of validation documents of a text source.
        max_epochs: maximum number of epochs; afterwards the other sources get this source's share, in proportion.
        section: the option of the recipe that contains the source.
    """

    name: str
    path: str | list[str]
    weight: Fraction
    config: str | None = None
    format: str = "text"
    answer_formats: dict[str, float] | None = None
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
        """The recipe key, for error messages."""
        return f"{self.section}.{self.name}"

    @property
    def paths(self) -> list[str]:
        """All paths of the source."""
        return [self.path] if isinstance(self.path, str) else self.path

    def facts(self) -> dict[str, Any]:
        """All fields as plain values, including defaults."""
        facts = {**asdict(self), "weight": float(self.weight)}
        del facts["section"]
        return facts


def parse_sources(sources: dict[str, Any] | None) -> list[Source]:
    """Check the recipe's `sources`; `InputError` names a wrong key."""
    if not isinstance(sources, dict) or not sources:
        raise InputError("sources: expected a mapping of source names, each with 'path' and 'weight'")
    parsed = [parse_source(f"sources.{name}", entry) for name, entry in sources.items()]
    total = sum((source.weight for source in parsed), Fraction())
    if abs(total - 1) > Fraction(1, 10**6):
        shares = ", ".join(f"{source.name} {float(source.weight):g}" for source in parsed)
        raise InputError(f"sources: the weights add up to {float(total):g}, expected 1 ({shares})")
    return parsed


def parse_validation_sources(entries: dict[str, Any], mixture: list[Source]) -> list[Source]:
    """Check the recipe's `validation_sources`: text sources without a weight."""
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
    """Check one source, given its key in the recipe."""
    section, name = key.split(".", 1)
    if not isinstance(entry, dict):
        raise InputError(f"{key}: expected a mapping with 'path' and 'weight', found {entry!r}")
    known = [one.name for one in fields(Source) if one.name not in ("name", "section")]
    for unknown in set(entry) - set(known):
        raise InputError(f"{key}.{unknown}: unknown key; expected one of {known}")
    for required in ("path", "weight"):
        if entry.get(required) is None:
            raise InputError(f"{key}.{required}: missing")
    check_types(key, entry)
    weight = share(f"{key}.weight", entry["weight"])
    if entry.get("format", "text") not in FORMATS:
        raise InputError(f"{key}.format: expected one of {list(FORMATS)}, found {entry['format']!r}")
    checked = {"answer_formats": source_formats(key, entry), **source_passages(key, entry)}
    return Source(**{**entry, **checked, "name": name, "weight": weight, "section": section})


def check_types(key: str, entry: dict[str, Any]) -> None:
    """Raise `InputError` if a field of a source has a value of the wrong type."""
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
    """Parse an exact share above 0 and up to 1: from its decimal text, 0.45 becomes 9/20."""
    try:
        exact = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        exact = Fraction()
    if not 0 < exact <= 1:
        raise InputError(f"{key}: expected a number above 0 and up to 1, found {value!r}")
    return exact


def source_formats(key: str, entry: dict[str, Any]) -> dict[str, float] | None:
    """The answer formats of a source: letters by default for medqa, None for text."""
    formats = entry.get("answer_formats")
    if entry.get("format") == "medqa":
        return checked_formats(f"{key}.answer_formats", "letter" if formats is None else formats)
    if formats is not None:
        raise InputError(f"{key}.answer_formats: a text source has no answers; remove it, or set format to medqa")
    return None


def source_passages(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The options of a source's books, with defaults; empty without books."""
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
    """The weights as the smallest integers in the same proportions: 45/25/20/10 % gives 9, 5, 4, 2."""
    denominator = lcm(*(source.weight.denominator for source in sources))
    return {source.name: int(source.weight * denominator) for source in sources}


def fixed_settings(arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, Any]:
    """The settings that the sequences depend on, by recipe key."""
    return {
        **{name: getattr(arguments, name) for name in (*FIXED_OPTIONS, "validation_sources")},
        "sources": [source.facts() for source in arguments.mixture],  # a list, because the order matters
        "tokenizer_name_or_path": digest(tokenizer.backend_tokenizer.to_str()),
        "seed": seed,
    }


def position_settings(fixed: dict[str, Any], listings: dict[str, str]) -> dict[str, Any]:
    """The part of the `fixed_settings` that a position in the mixture depends on, by recipe key.

    Args:
        listings: by source, the listing of its `Records`.
    """
    position = {name: fixed[name] for name in ("seed", "max_seq_length", "tokenizer_name_or_path")}
    for source in fixed["sources"]:
        name = source["name"]
        position[f"sources.{name}"] = digest(*(source[field] for field in POSITION_FIELDS), listings[name])
    return position


def digest(*facts: object) -> str:
    """A short hash of values."""
    return hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()[:16]
