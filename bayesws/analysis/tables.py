"""Tables as text, for print()."""

from io import StringIO

from rich.console import Console
from rich.table import Table

WIDTH = 100  # of a printed table


def as_text(table: Table) -> str:
    """The table as plain text, no wider than WIDTH."""
    console = Console(width=WIDTH, file=StringIO(), highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
