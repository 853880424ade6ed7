"""Recipes: flat YAML files whose every key is also a command-line option.

    pure pretrain --config recipes/local/pretrain.yaml --max_steps 300 --sources.c4.path '/c4/*.parquet'

Dots address the keys of a mapping such as `sources`; `null` is None in both. `--help` shows the options that our own
dataclasses declare; every other option of the Hugging Face class they extend is accepted too.
"""

import argparse
import contextlib
import dataclasses
import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from transformers import HfArgumentParser

from .errors import InputError, first_line
from .options import OneLineErrors, stated_options
from .plain_yaml import RecipeLoader, load_recipe, refuse_ambiguous

LIBRARY_ERRORS = (ValueError, TypeError, ImportError, OSError)
ONE_START = ("resume_from_checkpoint", "allow_recipe_change")  # options of one launch, not of the run
MAY_MOVE = ("path", "validation_path", "passages")  # of a source: the data are compared instead


@dataclass(frozen=True)
class Recipe:
    """A recipe merged from file and command line, without secrets and the options of one launch.

    Attributes:
        options: the given options and the defaults of our own, as `--config` reads them.
        resolved: their values as the run uses them, and those of `fixed`.
        fixed: names of options that must not change on resume: the curve would be meaningless.
        tensors: names of options that the tensors of a checkpoint depend on.
    """

    options: dict[str, Any]
    resolved: dict[str, Any]
    fixed: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    def resolve(self, **values: Any) -> "Recipe":
        """The recipe with values that are known only once its inputs have been read."""
        return dataclasses.replace(self, resolved=self.resolved | values)

    def changes(self, before: dict[str, Any], allowed: bool) -> list[str]:
        """The differences from a resolved recipe, such as `sources.c4.weight: 0.3, was 0.2`.

        Args:
            allowed: report only changes that the tensors depend on.
        """
        keys = self.tensors if allowed else (*self.tensors, *self.fixed)
        return [line for key in keys for line in differences(key, before.get(key), self.resolved.get(key))]


class HelpPage(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option, and keeps the line breaks of the script's description."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


class RecipeParser(OneLineErrors, HfArgumentParser):
    """Fills dataclasses from `--config FILE.yaml` and the command line, which takes precedence."""

    dataclass_types: list[Any]

    def __init__(self, dataclass_types: tuple[type, ...], description: str) -> None:
        super().__init__(
            cast(Any, dataclass_types),  # declared as a NewType in transformers
            usage="%(prog)s [--config RECIPE.yaml] [--option VALUE ...]",
            description=description,
            allow_abbrev=False,
            formatter_class=HelpPage,
            epilog="".join(
                f"Every other option of {base.__module__.split('.')[0]}.{base.__name__} works too."
                for base in (kind.__bases__[-1] for kind in dataclass_types)
                if dataclasses.is_dataclass(base)
            ),
        )
        self.add_argument("--config", metavar="FILE", help="recipe: a flat YAML file of the options below")
        self.stated = [name for kind in dataclass_types for name in stated_options(kind)]
        shown = ["help", "config", *self.stated]
        self.hints = {name: str(hint) for kind in dataclass_types for name, hint in get_type_hints(kind).items()}
        for action in self._actions:
            if action.dest not in shown or action.option_strings[0].startswith("--no_"):
                action.help = argparse.SUPPRESS
            if action.dest not in ("help", "config"):
                action.option_strings = action.option_strings[:1]  # --a-b is accepted too, but shown as --a_b
                action.metavar = "VALUE"
            kind: Any = action.type
            hint = self.hints.get(action.dest, "")
            if kind is dict or getattr(kind, "__origin__", None) is dict:
                action.type = parse_mapping
            elif kind is str and "dict" in hint:
                action.type = mapping_as_json
            elif "str" in hint and ("bool" in hint or "False" in hint):
                action.type = word_or_bool
        # `--help` lists our options in the order of our dataclasses.
        page = self._optionals._group_actions
        page.sort(key=lambda action: shown.index(action.dest) if action.dest in shown else len(shown))

    def parse_recipe(self, argv: list[str]) -> tuple[Any, ...]:
        """Fill the dataclasses from `argv`; raises `InputError` for an unknown key or a value of the wrong type."""
        path, overrides, options = split_arguments(argv)
        recipe = read_recipe(path) if path else {}
        known = [action.dest for action in self._actions]
        for key in recipe:
            if key not in known:
                raise InputError(f"{path}: unknown key '{key}'{suggestion(key, known)}")
        for dotted, value in overrides:
            override(recipe, dotted, value)
        names = (option.lstrip("-").partition("=")[0].replace("-", "_") for option in options)
        self.given = {*recipe, *names}
        # Values of the recipe are parsed as arguments, before those of the command line, which so take precedence.
        exact = argparse.Namespace()  # values that no argument can express: None, empty lists, mappings
        arguments = [text for key, value in recipe.items() for text in self.as_arguments(key, value, exact)]
        parsed, unknown = self.parse_known_args(arguments + options, exact)
        if unknown or (unknown := [f"--{key}" for key in recipe if key not in known]):
            raise InputError(f"unknown option '{unknown[0]}'{suggestion(unknown[0], [f'--{name}' for name in known])}")
        self.values = vars(parsed)
        try:
            return self.parse_dict(self.values, allow_extra_keys=True)
        except LIBRARY_ERRORS as error:
            raise InputError(self.naming(first_line(error), self.values)) from error

    def naming(self, message: str, values: dict[str, Any]) -> str:
        """Prefix a library's message with the option that causes it: the one whose default avoids the error."""
        for name in sorted(self.given & values.keys()):
            if name in message:
                return message
        for name in sorted(self.given & values.keys()):
            with contextlib.suppress(*LIBRARY_ERRORS, InputError):
                self.parse_dict({**values, name: self.get_default(name)}, allow_extra_keys=True)
                return f"{name}: {message}"
        return message

    def as_arguments(self, key: str, value: Any, exact: argparse.Namespace) -> list[str]:
        """Turn a recipe entry into command-line arguments; values that these cannot express are set on `exact`.

        Raises:
            InputError: the value has another type than the option, or a word in it may mean true or false.
        """
        hint = self.hints.get(key, "")
        if value is None:
            if hint and "None" not in hint:
                raise InputError(f"{key}: expected a value, found null; leave it out for its default")
            setattr(exact, key, None)
            return []
        if isinstance(value, dict):
            if "dict" not in hint:
                raise InputError(f"{key}: expected one value, found a mapping of {sorted(map(str, value))}")
            refuse_ambiguous(key, value)
            try:
                setattr(exact, key, json.loads(json.dumps(value)))
            except TypeError as error:  # dates, bytes and sets, which YAML has
                raise InputError(f"{key}: {first_line(error)}") from error
            return []
        if isinstance(value, list):
            if "list" not in hint or any(isinstance(one, dict | list) for one in value):
                wanted = "plain values" if "list" in hint else "a mapping" if "dict" in hint else "one value"
                raise InputError(f"{key}: expected {wanted}, found {value}")
            several = any(action.dest == key and action.nargs in ("+", "*") for action in self._actions)
            if several and value:
                return [f"--{key}", *map(str, value)]
            setattr(exact, key, [str(one) for one in value])
            return []
        return [f"--{key}={value}"]

    def merged_recipe(self, parsed: tuple[Any, ...]) -> Recipe:
        """The merged recipe of the last `parse_recipe`, which returned `parsed`."""
        fixed, tensors = (
            tuple(name for kind in self.dataclass_types for name in getattr(kind, names, ()))
            for names in ("FIXED", "TENSORS")
        )
        plain = [one.to_dict() if hasattr(one, "to_dict") else dataclasses.asdict(one) for one in parsed]
        resolved = {name: without_tokens(value) for values in plain for name, value in values.items()}
        public = [name for name in resolved if name not in ONE_START and not name.endswith("token")]
        ours = [name for name in public if name in {*self.stated, *self.given}]
        return Recipe(
            {name: without_tokens(self.values[name]) for name in ours},
            {name: resolved[name] for name in public if name in {*ours, *fixed, *tensors}},
            fixed,
            tensors,
        )


def without_tokens(value: Any) -> Any:
    """An option's value without Hub tokens, which a mapping, or a JSON text of one, may hold."""
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, dict):
        return {name: without_tokens(one) for name, one in value.items() if name != "token"}
    return value


def differences(key: str, before: Any, now: Any) -> list[str]:
    """The differences between two values of a key; mappings are compared key by key."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if name not in MAY_MOVE]
        return [line for name in names for line in differences(f"{key}.{name}", before.get(name), now.get(name))]
    if isinstance(before, dict) or isinstance(now, dict):
        return [f"{key}: removed" if now is None else f"{key}: new"]
    return [] if before == now else [f"{key}: {now}, was {before}"]


def suggestion(word: str, known: list[str]) -> str:
    """`; did you mean ...?` if a known word is close."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def split_arguments(argv: list[str]) -> tuple[str | None, list[tuple[str, str]], list[str]]:
    """Split into the recipe's path, the overrides to read as YAML (dotted names, and null), and other arguments."""
    path: str | None = None
    overrides: list[tuple[str, str]] = []
    options: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, has_value, value = argument.partition("=")
        is_null = (value if has_value else rest[:1]) in ("null", ["null"])
        if name != "--config" and not (name.startswith("--") and ("." in name or is_null)):
            options.append(argument)
            continue
        if not has_value:
            if not rest:
                raise InputError(f"{name}: expected a value")
            value = rest.pop(0)
        if name == "--config":
            if path is not None:
                raise InputError(f"--config: found two, '{path}' and '{value}'; merge them into one recipe")
            path = value
        else:
            overrides.append((name[2:] if "." in name else name[2:].replace("-", "_"), value))
    return path, overrides, options


def read_recipe(path: str) -> dict[str, Any]:
    """Read a recipe file into a mapping from options to texts, mappings, lists and None."""
    if not Path(path).is_file():
        raise InputError(f"--config: no such recipe '{path}'")
    try:
        recipe = load_recipe(Path(path).read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected a mapping of options to values")
    return recipe


def override(recipe: dict[str, Any], dotted: str, value: str) -> None:
    """Set `a.b.c` in nested mappings to a value that is read as YAML."""
    *parents, last = dotted.split(".")
    for parent in parents:
        recipe[parent] = {} if recipe.get(parent) is None else recipe[parent]
        recipe = recipe[parent]
        if not isinstance(recipe, dict):
            raise InputError(f"--{dotted}: '{parent}' is not a mapping")
    try:
        recipe[last] = parse_value(value)
    except InputError as error:
        raise InputError(f"--{dotted}: {error}") from error


def parse_value(text: str) -> Any:
    """Parse JSON or YAML; other text, such as the glob *.parquet, is returned unchanged."""
    try:
        return yaml.load(text, RecipeLoader)
    except yaml.YAMLError:
        return text


def word_or_bool(text: str) -> str | bool:
    """Parse true or false; another word is returned unchanged."""
    return {"true": True, "false": False}.get(text.lower(), text)


def mapping_as_json(text: str) -> str:
    """Turn a YAML mapping into JSON, which transformers parses; other text is returned unchanged."""
    return json.dumps(parse_mapping(text)) if text.startswith("{") else text


def parse_mapping(text: str) -> dict[str, Any]:
    """Parse a mapping written as JSON or YAML."""
    try:
        value = parse_value(text)
        refuse_ambiguous("mapping", value)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a mapping, found {text!r}")
    return value
