"""Checks of option values. Each raises `InputError` with the name of the option; None passes unless stated."""

import argparse
import contextlib
import inspect
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError

LARGEST = sys.float_info.max
LARGEST_SEED = 2**32 - 1  # NumPy's limit


def option(default: Any, help_text: str) -> Any:
    """A dataclass field with the text that `--help` shows; all instances share a list that is the default."""
    if isinstance(default, list):
        return field(default_factory=lambda: default, metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


class OneLineErrors:
    """Makes an `argparse.ArgumentParser` raise `InputError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError`."""
        raise InputError(message)


class CommandLine(OneLineErrors, argparse.ArgumentParser):
    """The parser of a command that takes no recipe."""

    def __init__(self, description: str) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)


def stated_options(kind: type[Any]) -> list[str]:
    """The options that our own dataclasses declare, without those inherited from a library's class."""
    ours = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in ("transformers", "trl", "builtins")]
    names = {one.name for one in fields(kind)}
    return [
        name for name in dict.fromkeys(name for one in ours for name in inspect.get_annotations(one)) if name in names
    ]


def check_texts(options: Any, *may_be_empty: str) -> None:
    """Refuse an empty string, alone or in a list, for each of our own options whose default it is not."""
    stated = stated_options(type(options))
    for one in fields(options):
        name, value = one.name, getattr(options, one.name)
        if name not in stated or name in may_be_empty or value == one.default:
            continue
        if value == "" or (isinstance(value, list) and "" in value):
            raise InputError(f"{name}: expected a value, found an empty text; leave it out for its default")


def check_choices(options: Any, **choices: Iterable[Any]) -> None:
    """Refuse a value that is not one of its choices, None too unless it is one of them."""
    for name, allowed in choices.items():
        value = getattr(options, name)
        known = [getattr(choice, "value", choice) for choice in allowed]
        if getattr(value, "value", value) not in known:
            raise InputError(f"{name}: expected one of {known}, found {value!r}")


def check_range(options: Any, names: Iterable[str], smallest: float, largest: float, expected: str) -> None:
    """Refuse a value outside [smallest, largest]."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not smallest <= value <= largest:
            raise InputError(f"{name}: expected {expected}, found {value}")


def check_numbers(options: Any, **least: float) -> None:
    """Refuse a number below the given one, or infinity."""
    for name, smallest in least.items():
        check_range(options, [name], smallest, LARGEST, f"a number of {smallest:g} or more")


def check_above_zero(options: Any, *names: str) -> None:
    """Refuse 0, negative numbers and infinity."""
    check_range(options, names, math.ulp(0), LARGEST, "a number above 0")


def check_shares(options: Any, *names: str) -> None:
    """Refuse a number outside [0, 1]."""
    check_range(options, names, 0, 1, "a share from 0 to 1")


def check_seeds(options: Any, *names: str) -> None:
    """Refuse a seed that Python, NumPy or PyTorch does not accept."""
    check_range(options, names, 0, LARGEST_SEED, f"a seed from 0 to {LARGEST_SEED:,}")


def check_output_folder(name: str, folder: str) -> None:
    """Refuse a folder that cannot be created or written to, without writing anything."""
    try:
        path = Path(folder).expanduser().absolute()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
        place = next(place for place in (path, *path.parents) if os.path.lexists(place))
        is_folder, writable = place.is_dir(), os.access(place, os.W_OK | os.X_OK)
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a zero byte, an unknown ~user
        raise InputError(f"{name}: cannot use '{folder[:80]!r}': {error}") from error
    if not is_folder:
        raise InputError(f"{name}: '{folder}' cannot be a folder: '{place}' is a file")
    if not writable:
        raise InputError(f"{name}: no permission to write to '{place}'")


def check_output_file(name: str, file: str) -> None:
    """Refuse a file that cannot be written or has no folder yet, without writing anything."""
    check_output_folder(name, str(Path(file).parent))
    if not Path(file).parent.is_dir():
        raise InputError(f"{name}: no folder '{Path(file).parent}' for this file; create it first")
    if Path(file).is_dir():
        raise InputError(f"{name}: '{file}' is a folder; expected a file to write")
