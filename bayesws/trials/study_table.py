"""The table of a study: accuracy, likelihood and what every layer's stack has become, by method."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from bayesws.trials.comparison import Summary

Cells = Sequence[tuple[str, int, str, list[dict[str, Any]]]]


def rows(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, str, list[dict[str, Any]]]]:
    """Records by task, number of training images and method: (task, size, method, one record a seed)."""
    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for record in records:
        settings = record["settings"]
        cells.setdefault((settings["task"], settings["train_size"], settings["method"]), []).append(record)
    for (task, size, method), found in cells.items():
        yield task, size, method, found


def study_table(cells: Cells) -> Table:
    """A row for each task, number of training images and method; mean ± standard error over seeds.

    It fits into 80 columns: task and number of images stand once, above the rows that have them in common.

    Args:
        cells: (task, size, method, records), as `rows` gives them.
    """
    table = _table("mean ± standard error over seeds", cells)
    table.add_column("method")
    for name in ("seeds", "accuracy %", "NLL", "evidence/datum", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for heading, (_, size, method, records) in _headed(cells):
        if heading:
            table.add_row(heading)
        table.add_row(
            Text(method),
            str(len(records)),
            Summary.of([r["accuracy"] for r in records]).show(2, 100),
            Summary.of([r["nll"] for r in records]).show(3),
            Summary.of([r["log_evidence"] / size for r in records]).show(3),
            f"{median(r['seconds'] for r in records):.0f}",
        )
    return table


def study_groups_table(cells: Cells) -> Table:
    """A row for each method that learns stacks, as in `study_table`: which groups they became, in how many seeds."""
    learned = [cell for cell in cells if groups_of(cell[3])]
    table = _table("what the layers share, by number of seeds", learned)
    table.add_column("method")
    table.add_column("groups of the layers")
    for heading, (_, _, method, records) in _headed(learned):
        if heading:
            table.add_row(heading)
        table.add_row(Text(method), groups_of(records))
    return table


def _table(title: str, cells: Cells) -> Table:
    places = _places(cells)
    title = f"{places[0]}, {title}" if len(places) == 1 else title.capitalize()
    return Table(title=Text(title, style="italic"), title_justify="left", box=None, pad_edge=False)


def _headed(cells: Cells) -> Iterator[tuple[Text | None, tuple[str, int, str, list[dict[str, Any]]]]]:
    """Every cell, the first of a task and number of images with a heading, where there are several."""
    several, before = len(_places(cells)) > 1, ""
    for cell in cells:
        (place,) = _places([cell])
        yield Text(place, style="bold") if several and place != before else None, cell
        before = place


def _places(cells: Cells) -> list[str]:
    return list(dict.fromkeys(f"{task}, {size} images" for task, size, _, _ in cells))


def groups_of(records: Sequence[dict[str, Any]]) -> str:
    """How many seeds had which known groups in their layers, most frequent first; nothing where no stack is learned."""
    if not any(r["stack_parameters"] for r in records):
        return ""
    found = Counter(layer_groups(r) for r in records)
    return "\n".join(f"{count} × {names}" for names, count in found.most_common(2))


def layer_groups(record: dict[str, Any]) -> str:
    """The groups of a record's layers, one name where they agree."""
    names = [g["name"] or "no group" for g in record["groups"].values()]
    if not names:
        return "not doubly stochastic"
    return f"{names[0]} in all {len(names)}" if len(set(names)) == 1 else ", ".join(names)
