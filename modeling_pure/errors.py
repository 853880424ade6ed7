"""Bad input: one line that names the key, file or row and the cure, exit code 2, nothing half-written."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """The user's input cannot be used. The message is one line: what is wrong, where, and what was expected."""


def run_script(main: Callable[[], int | None], name: str) -> None:
    """Run a script's `main` and leave the process with its exit code; an `InputError` is printed and becomes 2."""
    try:
        code = main()
    except InputError as error:
        # One that a data-loader worker raised comes back as its whole traceback, with the message on the last line.
        message = str(error).splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")
        print(f"{name}: error: {message}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)


def first_line(error: BaseException) -> str:
    """The first line of an error's message: libraries print pages where a user needs one line."""
    return str(error).strip().split("\n")[0]
