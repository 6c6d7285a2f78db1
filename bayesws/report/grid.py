"""Tables of a page: those that the terminal shows, and small ones of the report's own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import Tensor

from bayesws.io.tables import visible

NOTHING: tuple[Any, ...] = (None, "", [], {}, ())


@dataclass(frozen=True)
class Grid:
    """A table as plain text; the page escapes it.

    Attributes:
        title: above it.
        columns: (heading, whether its cells are numbers).
        rows: cells as text; a row of one cell is a heading across all columns.
        caption: below it; may be empty.
    """

    title: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True)
class Products:
    """The composition table of a stack: R_a R_b = R_c in row a, column b.

    Attributes:
        labels: of the elements.
        cells: (c + 1 as text, the share of its tint) by row; "·" where no element equals the product.
    """

    labels: list[str]
    cells: list[list[tuple[str, int]]] = field(repr=False)

    @classmethod
    def of(cls, table: Tensor) -> "Products":
        """Of products as indices, -1 for none."""
        size = len(table)
        tint = [round(10 + 60 * c / max(size - 1, 1)) for c in range(size)]
        cells = [[("·", 0) if c < 0 else (str(c + 1), tint[c]) for c in row] for row in table.tolist()]
        return cls([str(g + 1) for g in range(size)], cells)


def grid_of(table: Table) -> Grid:
    """A table for the terminal as one for a page: title, headings, cells and caption; its styles are left out.

    So are columns that are nan throughout: what older runs did not measure.
    """
    shown = [column for column in table.columns if not table.row_count or any(map(_says, column.cells))]
    columns = [(_plain(column.header), column.justify == "right") for column in shown]
    cells = [[_plain(cell) for cell in column.cells] for column in shown]
    cells = [[_minus(c) for c in some] if number else some for (_, number), some in zip(columns, cells, strict=True)]
    rows = [list(row) for row in zip(*cells, strict=True)]
    rows = [row[:1] if len(row) > 1 and row[0] and not any(row[1:]) else row for row in rows]
    return Grid(_plain(table.title or ""), columns, rows, _plain(table.caption or ""))


def facts(title: str, values: Mapping[str, Any]) -> Grid:
    """Names and values, nested ones as "name value, name value"; what is None or empty is left out."""
    rows = [[name.replace("_", " "), as_words(value)] for name, value in values.items() if value not in NOTHING]
    return Grid(title, [("", False), ("", False)], rows)


def as_words(value: Any) -> str:
    """A setting as one would say it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', ' ')} {as_words(v)}" for k, v in value.items() if v not in NOTHING)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(as_words(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _says(cell: Any) -> bool:
    """Whether it holds a number, or anything but nan."""
    return re.search(r"\bnan\b", str(cell)) is None


def _minus(number: str) -> str:
    """With a true minus sign, but for an exponent's."""
    return re.sub(r"(?<![\w.])-(?=[\d.])", "−", number)


def _plain(cell: Any) -> str:
    """The words of a cell: a name is no markup, whatever it looks like."""
    return visible(cell.plain if isinstance(cell, Text) else str(cell))
