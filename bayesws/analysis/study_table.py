"""The table of a study: accuracy, likelihood and what every layer's stack has become, by method."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.table import Table

from bayesws.analysis.comparison import Summary

CLOSURE = 0.05


def study_table(cells: Sequence[tuple[str, int, str, list[dict[str, Any]]]]) -> Table:
    """A row for each task, number of training images and method; mean ± standard error over seeds.

    Args:
        cells: (task, size, method, records), as `study.rows` gives them.
    """
    table = Table(box=None, pad_edge=False)
    for name in (
        "task",
        "images",
        "method",
        "seeds",
        "accuracy %",
        "NLL",
        "evidence/datum",
        "s",
        "groups of the layers",
    ):
        table.add_column(name, justify="left" if name in ("task", "method", "groups of the layers") else "right")
    for task, size, method, records in cells:
        table.add_row(
            task,
            str(size),
            method,
            str(len(records)),
            Summary.of([r["accuracy"] for r in records]).show(2, 100),
            Summary.of([r["nll"] for r in records]).show(3),
            Summary.of([r["log_evidence"] / size for r in records]).show(3),
            f"{median(r['seconds'] for r in records):.0f}",
            groups_of(records),
        )
    return table


def groups_of(records: Sequence[dict[str, Any]]) -> str:
    """How many seeds had which known groups in their layers, most frequent first; nothing where no stack is learned."""
    if not any(r["stack_parameters"] for r in records):
        return ""
    found = Counter(layer_groups(r) for r in records)
    return "; ".join(f"{count} × {names}" for names, count in found.most_common(2))


def layer_groups(record: dict[str, Any]) -> str:
    """The groups of a record's layers, one name where they agree."""
    names = [g["name"] or "no group" for g in record["groups"].values()]
    if not names:
        return "not doubly stochastic"
    return f"{names[0]} in all {len(names)}" if len(set(names)) == 1 else ", ".join(names)
