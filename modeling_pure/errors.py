"""Errors, and how scripts turn them into one line and an exit code."""

import errno
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper
from typing import NoReturn


class InputError(Exception):
    """The user's input cannot be used. The message is one line: key, file or record, the fault, and its cure."""


class RunStopped(Exception):
    """A rule of this project stops a running job. The message is one line, as for `InputError`."""


class RankLost(Exception):
    """Another process of the run hangs or has exited. The message is one line."""


class RunInterrupted(Exception):
    """A signal stopped the run after a checkpoint. The exit code is the one that a shell reports for the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_CODES: dict[type[Exception], int] = {RankLost: 1, InputError: 2, RunStopped: 3}


def run_script(main: Callable[[], int | None], name: str) -> NoReturn:
    """Run a script's `main` and exit with its code; print the errors above as one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may support only ASCII
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of TRL's code, not the user's
    try:
        code = main()
    except tuple(EXIT_CODES) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print(f"{name}: error: cannot write: {error}; free some space; the same command continues", file=sys.stderr)
        code = EXIT_CODES[RunStopped]
    except RunInterrupted as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        code = stop.exit_code
    sys.exit(code or 0)


def one_line(error: Exception) -> str:
    """The message of an error. From a data-loader worker it ends a traceback, as `module.Class: message`."""
    line = str(error).splitlines()[-1]
    return line.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def first_line(error: BaseException) -> str:
    """The first line of a library's message, and the second if the first ends with a colon."""
    first, *others = str(error).strip().split("\n")
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first
