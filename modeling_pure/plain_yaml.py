"""YAML for recipes: the plain scalars of YAML 1.2, and no duplicate keys."""

import re
from typing import Any

import yaml

from .errors import InputError

TRUE_OR_FALSE = {"yes": "true", "on": "true", "no": "false", "off": "false"}


class Ambiguous(str):
    """A plain `yes`, `no`, `on` or `off`: a word in YAML 1.2, but true or false in YAML 1.1."""


class RecipeLoader(yaml.SafeLoader):
    """A loader in which 3e-5 is a number and `no` is a word.

    PyYAML reads YAML 1.1: 3e-5 is a text, `no` is false, 010 is 8, 12:30 is 750 and 2024-01-01 is a date.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; raises `InputError` for a duplicate key, of which PyYAML would take the last."""
        refuse_duplicates(node)
        return super().construct_mapping(node, deep)

    def construct_recipe(self) -> Any:
        """Construct a document; plain values of its top mapping stay texts, as on a command line."""
        node = self.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            return None if node is None else self.construct_document(node)
        refuse_duplicates(node)
        self.flatten_mapping(node)
        return {str(key.value): self.as_written(value) for key, value in node.value}

    def as_written(self, node: yaml.Node) -> Any:
        """The text of a scalar, None for null; a mapping or list with its values."""
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == "tag:yaml.org,2002:null" else node.value
        return self.construct_object(node, deep=True)


def refuse_duplicates(node: yaml.MappingNode) -> None:
    """Raise `InputError` for a duplicate key of a mapping."""
    keys: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys:
                raise InputError(f"'{key.value}' is written twice, again in line {key.start_mark.line + 1}")
            keys.add(key.value)


def refuse_ambiguous(key: str, value: Any) -> None:
    """Raise `InputError` for a word inside a mapping that other YAML parsers take for true or false."""
    if isinstance(value, Ambiguous):
        raise InputError(f"{key}: write {TRUE_OR_FALSE[value.lower()]}, or '\"{value}\"' if the word is meant")
    if isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_ambiguous(f"{key}.{name}", one)


AMBIGUOUS_TAG = "!ambiguous"
FLOAT = r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
for tag, pattern, first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][\d_]*)", list("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789")),
    ("tag:yaml.org,2002:merge", "<<", ["<"]),
    (AMBIGUOUS_TAG, r"(?i:yes|no|on|off)", list("yYnNoO")),
):
    RecipeLoader.add_implicit_resolver(tag, re.compile(rf"^(?:{pattern})$"), first)
RecipeLoader.add_constructor(AMBIGUOUS_TAG, lambda loader, node: Ambiguous(node.value))
