"""The picture of a comparison: what each layer shares, on each task, under each objective."""

import math
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bayesws.io.files import write_whole
from bayesws.trials.by_layer import rows_by_layer
from bayesws.trials.comparison import Comparison
from bayesws.trials.records import Trial

COLOURS = {
    "evidence": "#0b6e4f",
    "task": "#9aa0a6",
    "fixed": "#8e6bbf",
    "validated": "#c2548a",
    "constrained": "#5b8c9e",
}
LABEL = 1.6  # inches of the legend's labels
OF_PATHWAYS = (
    "#2a6fbb",
    "#d97706",
    "#7a8794",
    "#4d9a6a",
    "#a05a8c",
    "#8a7a4f",
)  # in the order in which layers have them


def sharing_picture(comparison: Comparison) -> Figure:
    """Sharing strength of the layers that have one (top) and effective parameters by pathway (bottom), a column a task.

    A dot is a seed, a bar the mean over seeds; networks whose sharing is not set by hand only.
    """
    both = {(t, o): trials for (t, s, o), trials in comparison.cells().items() if s == "both"}
    tasks = list(dict.fromkeys(task for task, _ in both))
    width = 1.2 + 3.1 * len(tasks)
    figure = Figure(figsize=(width, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(tasks), squeeze=False, sharey="row")
    for column, task in enumerate(tasks):
        by_objective = {o: trials for (t, o), trials in both.items() if t == task}
        _draw_strength(axes[0, column], by_objective)
        if "evidence" in by_objective:
            _draw_effective(axes[1, column], by_objective["evidence"])
        axes[0, column].set_title(task, fontweight="bold")
    axes[0, 0].set_ylabel("sharing strength ρ")
    axes[1, 0].set_ylabel("effective parameters γ\n(evidence)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    more, names = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles + more, labels + names, loc="outside lower center", ncols=int(width / LABEL), frameon=False)
    return figure


def save_picture(comparison: Comparison, path: str | Path) -> None:
    """Write `sharing_picture` as PNG, whole or not at all."""
    write_whole(Path(path), lambda draft: sharing_picture(comparison).savefig(draft, dpi=150, format="png"))


def _draw_strength(axis: Axes, by_objective: dict[str, list[Trial]]) -> None:
    width = 0.8 / len(by_objective)
    names: list[str] = []
    for place, (objective, trials) in enumerate(by_objective.items()):
        offset = (place - (len(by_objective) - 1) / 2) * width
        rows = {name: found for name, found in rows_by_layer(trials).items() if not math.isnan(found[0].strength)}
        names = names or list(rows)
        for layer, found in enumerate(rows.values()):
            label = f"ρ, {objective}" if layer == 0 else None
            _bar(axis, layer + offset, [row.strength for row in found], width * 0.9, COLOURS[objective], label)
    _name_layers(axis, names)
    axis.set_ylim(0, 1.05)


def _draw_effective(axis: Axes, trials: list[Trial]) -> None:
    rows, known = rows_by_layer(trials), set[str]()
    pathways = list(dict.fromkeys(name for found in rows.values() for name in found[0].parameters))
    for layer, found in enumerate(rows.values()):
        own = list(found[0].parameters)
        width = 0.8 / max(len(own), 1)
        for place, pathway in enumerate(own):
            label = None if pathway in known else f"γ, {pathway}"
            known.add(pathway)
            colour = OF_PATHWAYS[pathways.index(pathway) % len(OF_PATHWAYS)]
            values = [row.effective.get(pathway, 0.0) for row in found]
            _bar(axis, layer + (place - (len(own) - 1) / 2) * width, values, width * 0.9, colour, label)
    _name_layers(axis, list(rows))


def _bar(axis: Axes, place: float, values: list[float], width: float, colour: str, label: str | None) -> None:
    """The mean, and a dot a seed."""
    axis.bar(place, mean(values), width, color=colour, alpha=0.5, label=label)
    axis.plot([place] * len(values), values, "o", ms=4, color=colour)


def _name_layers(axis: Axes, names: list[str]) -> None:
    axis.set_xticks(range(len(names)), [f"layer {i + 1}\n{name}" for i, name in enumerate(names)])
    axis.spines[["top", "right"]].set_visible(False)
