"""Checks of option values that all argument classes share. Each raises `InputError` with the option's name."""

import argparse
import inspect
import math
import os
from collections.abc import Iterable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError

LARGEST_SEED = 2**32 - 1  # numpy's
AS_WRITTEN = argparse.RawDescriptionHelpFormatter


def option(default: Any, help_text: str) -> Any:
    """A dataclass field with the text that `--help` shows; a list is the same object for all instances."""
    if isinstance(default, list):
        return field(default_factory=lambda: default, metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


class OneLineErrors:
    """Lets an `argparse.ArgumentParser` raise `InputError`, instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError`."""
        raise InputError(message)


class CommandLine(OneLineErrors, argparse.ArgumentParser):
    """A parser of a command without a recipe."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=AS_WRITTEN, allow_abbrev=False)


def stated_options(kind: type[Any]) -> list[str]:
    """The options that a dataclass and our classes below it state, without those of a library's class."""
    ours = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in ("transformers", "trl", "builtins")]
    names = {one.name for one in fields(kind)}
    return [
        name for name in dict.fromkeys(name for one in ours for name in inspect.get_annotations(one)) if name in names
    ]


def check_texts(options: Any, *may_be_empty: str) -> None:
    """Raise `InputError` if an option that `options` states is an empty text or a list with one, unless by default."""
    stated = stated_options(type(options))
    for one in fields(options):
        name, value = one.name, getattr(options, one.name)
        if name not in stated or name in may_be_empty or value == one.default:
            continue
        if value == "" or (isinstance(value, list) and "" in value):
            raise InputError(f"{name}: expected a value, found an empty text; leave it out for its default")


def check_choices(options: Any, **choices: Iterable[Any]) -> None:
    """Raise `InputError` unless each named option is one of its choices; None passes if it is the default."""
    for name, allowed in choices.items():
        value = getattr(options, name)
        known = [getattr(choice, "value", choice) for choice in allowed]
        if getattr(value, "value", value) not in known:
            raise InputError(f"{name}: expected one of {known}, found {value!r}")


def check_numbers(options: Any, **least: float) -> None:
    """Raise `InputError` unless each named option is a finite number of at least this value; None passes."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and not smallest <= value < math.inf:
            raise InputError(f"{name}: expected a number of {smallest:g} or more, found {value}")


def check_above_zero(options: Any, *names: str) -> None:
    """Raise `InputError` unless each named option is a finite number above 0; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name}: expected a number above 0, found {value}")


def check_shares(options: Any, *names: str) -> None:
    """Raise `InputError` unless each named option is a number from 0 to 1; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name}: expected a share from 0 to 1, found {value}")


def check_seeds(options: Any, *names: str) -> None:
    """Raise `InputError` unless each named option is a seed that Python, NumPy and PyTorch accept; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 <= value <= LARGEST_SEED:
            raise InputError(f"{name}: expected a seed from 0 to {LARGEST_SEED:,}, found {value}")


def check_output_folder(name: str, folder: str) -> None:
    """Raise `InputError` unless a folder can be created and written to; nothing is written."""
    try:
        place = Path(folder).expanduser().absolute()
        while not exists(place):
            place = place.parent
        is_folder, writable = place.is_dir(), os.access(place, os.W_OK | os.X_OK)
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a zero byte, an unknown ~user
        raise InputError(f"{name}: cannot use '{folder[:80]!r}': {error}") from error
    if not is_folder:
        raise InputError(f"{name}: '{folder}' cannot be a folder: '{place}' is a file")
    if not writable:
        raise InputError(f"{name}: no permission to write to '{place}'")


def check_output_file(name: str, file: str) -> None:
    """Raise `InputError` unless a file can be written in an existing folder; nothing is written."""
    check_output_folder(name, str(Path(file).parent))
    if not Path(file).parent.is_dir():
        raise InputError(f"{name}: no folder '{Path(file).parent}' for this file; make it first")
    if Path(file).is_dir():
        raise InputError(f"{name}: '{file}' is a folder; expected a file to write")


def exists(place: Path) -> bool:
    """Whether a path leads to something; raises `OSError` or `ValueError` if it never can."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
