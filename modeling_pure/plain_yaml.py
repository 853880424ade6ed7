"""YAML for recipes: the scalars of YAML 1.2, and no duplicate keys."""

import re
from typing import Any

import yaml

from .errors import InputError

TRUE_OR_FALSE = {"yes": "true", "on": "true", "no": "false", "off": "false"}


class Ambiguous(str):
    """An unquoted `yes`, `no`, `on` or `off`: a word in YAML 1.2, but true or false in YAML 1.1."""


class RecipeLoader(yaml.SafeLoader):
    """Reads 3e-5 as a number and `no` as a word.

    PyYAML itself reads YAML 1.1: 3e-5 is a string, `no` is false, 010 is 8, 12:30 is 750 and 2024-01-01 is a date.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; raises `InputError` for a duplicate key, of which PyYAML would keep the last."""
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise InputError(f"duplicate key '{key.value}' in line {key.start_mark.line + 1}")
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def load_recipe(text: str) -> Any:
    """Load a recipe. Scalars of its top level stay as they are written, as on a command line, but null is None."""
    loader = RecipeLoader(text)
    node = loader.get_single_node()
    recipe = loader.construct_document(node) if node else None
    if not isinstance(node, yaml.MappingNode) or not isinstance(recipe, dict):
        return recipe
    written = {key.value: value.value for key, value in node.value if isinstance(value, yaml.ScalarNode)}
    return {str(key): value if value is None else written.get(str(key), value) for key, value in recipe.items()}


def refuse_ambiguous(key: str, value: Any) -> None:
    """Raise `InputError` for a word inside a mapping that other YAML parsers read as true or false."""
    if isinstance(value, Ambiguous):
        raise InputError(f"{key}: write {TRUE_OR_FALSE[value.lower()]}, or '\"{value}\"' for the word")
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_ambiguous(f"{key}.{name}", item)


FLOAT = r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
for tag, pattern in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][\d_]*)"),
    ("tag:yaml.org,2002:float", FLOAT),
    ("tag:yaml.org,2002:merge", "<<"),
    ("!ambiguous", r"(?i:yes|no|on|off)"),
):
    RecipeLoader.add_implicit_resolver(tag, re.compile(rf"^(?:{pattern})$"), None)
RecipeLoader.add_constructor("!ambiguous", lambda loader, node: Ambiguous(node.value))
