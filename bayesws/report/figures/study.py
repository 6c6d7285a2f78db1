"""The picture of a study: test error and likelihood of every method, by task and by number of training images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayesws.io.files import write_whole
from bayesws.trials.comparison import Summary

COLOURS = ("#c1272d", "#e69138", "#0b5394", "#6fa8dc", "#38761d", "#93c47d", "#674ea7", "#777777")
MARKERS = "osD^v<>P"
Cells = Sequence[tuple[str, int, str, list[dict[str, Any]]]]


def save_study_picture(cells: Cells, path: Path) -> None:
    """Draw mean and standard error of test error (%) and NLL (nats per datum); written whole.

    Several numbers of training images make curves, one makes a row of points a method.

    Args:
        cells: (task, size, method, records), as `study_table.rows` gives them.
        path: a .png file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks, methods = (list(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 2))
    sizes = sorted({cell[1] for cell in cells})
    height = 3.4 if len(sizes) > 1 else 0.9 + 0.34 * len(methods)
    figure, grid = plt.subplots(
        len(tasks),
        2,
        figsize=(10, height * len(tasks)),
        squeeze=False,
        layout="constrained",
        sharey="row" if len(sizes) == 1 else False,
    )
    for row, task in zip(grid, tasks, strict=True):
        for axes, title, values in (
            (row[0], "test error (%)", lambda r: 100 * (1 - r["accuracy"])),
            (row[1], "test NLL (nats per datum)", lambda r: r["nll"]),
        ):
            for number, method in enumerate(methods):
                mine = sorted((size, found) for t, size, m, found in cells if t == task and m == method)
                summaries = [Summary.of([values(r) for r in found]) for _, found in mine]
                style = {"color": COLOURS[number % 8], "marker": MARKERS[number % 8], "markersize": 5, "capsize": 2}
                means, errors = [s.mean for s in summaries], [0 if s.error != s.error else s.error for s in summaries]
                if len(sizes) > 1:
                    axes.errorbar([size for size, _ in mine], means, errors, label=method, **style)
                elif means:
                    axes.errorbar(means, [number], xerr=errors, linestyle="none", **style)
            axes.grid(alpha=0.3)
            axes.set_title(f"{task}: {title}", fontsize=10)
            if len(sizes) > 1:
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.set_xticks(sizes, [str(size) for size in sizes])
                axes.minorticks_off()
                axes.set_xlabel("training images")
            else:
                axes.set_yticks(range(len(methods)), methods)
                axes.set_xlim(left=0)
        if len(sizes) == 1:
            row[0].invert_yaxis()
    if len(sizes) > 1:
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    write_whole(path, lambda draft: figure.savefig(draft, dpi=150, format="png"))
    plt.close(figure)
