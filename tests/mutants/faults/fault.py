"""What a fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A line of a file, what it becomes, and the tests that are run then."""

    what: str
    file: str
    old: str
    new: str
    tests: str
