"""How a script ends when it cannot go on: one line that names the key, file or row and the cure, and an exit code."""

import errno
import sys
from collections.abc import Callable
from io import TextIOWrapper


class InputError(Exception):
    """The user's input cannot be used. The message is one line: what is wrong, where, and what was expected."""


class RunStopped(Exception):
    """A run stopped by a rule of ours while it was under way. The message is one line, as of `InputError`."""


class RankLost(Exception):
    """A process of the run hangs or has ended, which the others have found out. The message is one line."""


class RunInterrupted(Exception):
    """A run that a signal has stopped, after a checkpoint; its exit code is the one a shell gives for the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_CODES: dict[type[Exception], int] = {RankLost: 1, InputError: 2, RunStopped: 3}


def run_script(main: Callable[[], int | None], name: str) -> None:
    """Run a script's `main` and leave the process with its exit code; the errors above are printed as one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that knows ASCII only
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except tuple(EXIT_CODES) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print(f"{name}: error: cannot write: {error}; make room, and the same command goes on", file=sys.stderr)
        code = EXIT_CODES[RunStopped]
    except RunInterrupted as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        code = stop.exit_code
    sys.exit(code or 0)


def one_line(error: Exception) -> str:
    """The message of one of our errors.

    One that a data-loader worker raised comes back as its whole traceback, with `module.Class: message` as last line.
    """
    line = str(error).splitlines()[-1]
    return line.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


def first_line(error: BaseException) -> str:
    """The first line of an error's message: libraries print pages where a user needs one line.

    A line that ends in a colon only announces the reason, so the next one is added to it.
    """
    first, *others = str(error).strip().split("\n")
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first
