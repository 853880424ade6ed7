"""What people read in the terminal: blocks of facts, tables, and what stands wherever people meet the model."""

import sys

from rich.console import Console
from rich.table import Table

DISCLAIMER = "Research model. Not for clinical use: not for diagnosis, treatment or advice to patients."


def print_block(title: str, facts: dict[str, str]) -> None:
    """A titled block of `name  value` lines."""
    table = Table(
        title=title, show_header=False, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for name, value in facts.items():
        table.add_row(name, value)
    print_rich(table)


def print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """A titled table; all columns but the first are aligned on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    print_rich(table)


def print_rich(table: Table) -> None:
    """Where no one looks at a terminal, lines stay whole, so that a log can be searched."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)
