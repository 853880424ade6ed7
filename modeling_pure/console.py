"""Terminal output: blocks of facts, tables, and the disclaimer."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

DISCLAIMER = "Research model. Not for clinical use: not for diagnosis, treatment or advice to patients."


def print_block(title: str, facts: dict[str, str]) -> None:
    """Print a titled block of `name  value` lines."""
    table = titled_table(title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    print_rich(table)


def print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a titled table; all columns but the first are aligned to the right."""
    table = titled_table(title)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    print_rich(table)


def titled_table(title: str, show_header: bool = True) -> Table:
    """An empty table; its title is plain text, not rich's markup."""
    return Table(
        title=Text(title),
        show_header=show_header,
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )


def print_rich(table: Table) -> None:
    """Print a table after an empty line; outside of a terminal, lines do not wrap, so that a log can be searched."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print()
    console.print(table)
