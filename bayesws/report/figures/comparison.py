"""The picture of a comparison: what each layer shares, on each task, under each objective."""

from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bayesws.io.files import write_whole
from bayesws.trials.comparison import Comparison
from bayesws.trials.records import Trial

COLOURS = {
    "evidence": "#0b6e4f",
    "task": "#9aa0a6",
    "fixed": "#8e6bbf",
    "validated": "#c2548a",
    "constrained": "#5b8c9e",
    "shared": "#2a6fbb",
    "free": "#d97706",
}


def sharing_picture(comparison: Comparison) -> Figure:
    """Sharing strength (top) and effective parameters by pathway (bottom), a column per task.

    A dot is a seed, a bar the mean over seeds; networks with both pathways only.
    """
    chosen = {(t, o): trials for (t, s, o), trials in comparison.cells().items() if s == "chosen"}
    tasks = list(dict.fromkeys(task for task, _ in chosen))
    figure = Figure(figsize=(1.2 + 3.1 * len(tasks), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(tasks), squeeze=False, sharey="row")
    for column, task in enumerate(tasks):
        by_objective = {o: trials for (t, o), trials in chosen.items() if t == task}
        _draw_strength(axes[0, column], by_objective)
        if "evidence" in by_objective:
            _draw_effective(axes[1, column], by_objective["evidence"])
        axes[0, column].set_title(task, fontweight="bold")
    axes[0, 0].set_ylabel("sharing strength ρ")
    axes[1, 0].set_ylabel("effective parameters γ\n(evidence)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    more, names = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles + more, labels + names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def save_picture(comparison: Comparison, path: str | Path) -> None:
    """Write `sharing_picture` as PNG, whole or not at all."""
    write_whole(Path(path), lambda draft: sharing_picture(comparison).savefig(draft, dpi=150, format="png"))


def _draw_strength(axis: Axes, by_objective: dict[str, list[Trial]]) -> None:
    width = 0.8 / len(by_objective)
    for place, (objective, trials) in enumerate(by_objective.items()):
        offset = (place - (len(by_objective) - 1) / 2) * width
        for layer in range(len(trials[0].sharing)):
            values = [t.sharing[layer].strength for t in trials]
            label = f"ρ, {objective}" if layer == 0 else None
            axis.bar(layer + offset, mean(values), width * 0.9, color=COLOURS[objective], alpha=0.5, label=label)
            axis.plot([layer + offset] * len(values), values, "o", ms=4, color=COLOURS[objective])
    _name_layers(axis, next(iter(by_objective.values())))
    axis.set_ylim(0, 1.05)


def _draw_effective(axis: Axes, trials: list[Trial]) -> None:
    for layer in range(len(trials[0].sharing)):
        for offset, pathway in ((-0.2, "shared"), (0.2, "free")):
            values = [t.sharing[layer].effective.get(pathway, 0.0) for t in trials]
            label = f"γ, {pathway} pathway" if layer == 0 else None
            axis.bar(layer + offset, mean(values), 0.36, color=COLOURS[pathway], alpha=0.5, label=label)
            axis.plot([layer + offset] * len(values), values, "o", ms=4, color=COLOURS[pathway])
    _name_layers(axis, trials)


def _name_layers(axis: Axes, trials: list[Trial]) -> None:
    names = [f"layer {i + 1}\n{row.name}" for i, row in enumerate(trials[0].sharing)]
    axis.set_xticks(range(len(names)), names)
    axis.spines[["top", "right"]].set_visible(False)
