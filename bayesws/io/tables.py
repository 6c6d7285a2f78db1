"""Tables as text, for print()."""

from collections.abc import Iterable
from io import StringIO
from typing import Any
from unicodedata import category

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100  # of a printed table
STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # kinds of characters that are not themselves seen


class PlainConsole(Console):
    """A console that prints strings as they are: names may look like markup, and hold what would steer a terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As rich renders a string that is printed, or a table's cell; control characters are shown by their codes."""
        return super().render_str(visible(text), **settings)


def visible(text: str) -> str:
    r"""The text with what is not printed shown by its code, but for ends of lines.

    >>> print(visible("a\x1b[31mb\u202ec"))
    a\x1b[31mb\u202ec
    """
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if category(c) in STEERING and c != "\n" else c for c in text)


def table_by_layer(title: str, layer: str, headings: Iterable[str]) -> Table:
    """An empty table with a row's name first and numbers after it; long names fold, none is cut."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(layer, min_width=12, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def as_text(table: Table) -> str:
    """The table as plain text, no wider than WIDTH."""
    console = PlainConsole(width=WIDTH, file=StringIO())
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
