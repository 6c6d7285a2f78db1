"""Tables as text, for print()."""

from collections.abc import Iterable
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDTH = 100  # of a printed table


def table_by_layer(title: str, layer: str, headings: Iterable[str]) -> Table:
    """An empty table with a row's name first and numbers after it; long names fold, none is cut."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(layer, min_width=12, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def as_text(table: Table) -> str:
    """The table as plain text, no wider than WIDTH."""
    console = Console(width=WIDTH, file=StringIO(), highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
