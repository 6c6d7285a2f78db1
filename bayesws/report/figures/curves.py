"""Training curves: the loss, and the log evidence as the sum of its three terms."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bayesws.report.figures.drawing import TONES, new_figure

HEIGHT = 2.1
STEEP = 4  # ratio of the first loss to the last from which on its axis is logarithmic
GAP = 0.09  # least distance of two labels, in heights of the axes


def loss_curve(history: Sequence[dict[str, float]]) -> Figure:
    """Mean negative log likelihood of the training data by epoch, on a logarithmic scale where it falls far."""
    figure, (axes,) = new_figure(HEIGHT)
    epochs, losses = zip(*((r["epoch"], r["loss"]) for r in history), strict=True)
    axes.plot(epochs, losses, color=TONES["accent"], linewidth=1.4)
    if min(losses) > 0 and max(losses) > STEEP * min(losses):
        _logarithmic(axes)
    else:
        axes.locator_params(axis="y", nbins=4)
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("epoch")
    axes.set_title("training loss, nats per datum")
    _label_ends(axes, [(losses[-1], f"{losses[-1]:.3g}", "accent")], epochs[-1])
    return figure


def evidence_curves(history: Sequence[dict[str, float]], examples: int) -> Figure:
    """What the evidence costs, by epoch: −data fit + scatter + Occam factor = −log evidence, nats per datum."""
    figure, (axes,) = new_figure(HEIGHT)
    steps = [r for r in history if "log_evidence" in r]
    epochs = [r["epoch"] for r in steps]
    terms = (
        ("−log evidence", "log_evidence", -1, "ink"),
        ("−data fit", "data_fit", -1, "cool"),
        ("scatter", "scatter", 1, "warm"),
        ("Occam", "occam", 1, "accent"),
    )
    ends = []
    for label, key, sign, tone in terms:
        values = [sign * r[key] / examples for r in steps]
        marker = {"marker": "o", "ms": 3, "mew": 0} if len(steps) < 3 else {}
        axes.plot(epochs, values, color=TONES[tone], linewidth=2 if tone == "ink" else 1.2, **marker)  # type: ignore[arg-type]
        ends.append((values[-1], f"{label} {values[-1]:.2f}", tone))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("epoch")
    axes.set_title("terms of −log evidence, nats per datum")
    _label_ends(axes, ends, epochs[-1])
    return figure


def size_curves(curves: Sequence[tuple[str, Sequence[int], Sequence[float], str]], title: str) -> Figure:
    """A value by number of training images, a line a method, both axes logarithmic.

    Args:
        curves: (method, sizes, values, tone).
        title: what the values are, and their unit.
    """
    figure, (axes,) = new_figure(HEIGHT + 0.06 * len(curves))
    for number, (_, sizes, values, tone) in enumerate(curves):
        style = ("-", "--", ":")[number // 6 % 3]
        axes.plot(sizes, values, style, color=TONES[tone], linewidth=1.4, marker="o", ms=3, mew=0)
    sizes = sorted({size for _, some, _, _ in curves for size in some})
    axes.set_xscale("log")
    _logarithmic(axes)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.tick_params(which="minor", axis="x", length=0)
    axes.set_xlabel("training images")
    axes.set_title(title)
    _label_ends(axes, [(values[-1], name, tone) for name, _, values, tone in curves], sizes[-1])
    return figure


def _logarithmic(axes: Axes) -> None:
    """A vertical axis with numbers at 1, 2 and 5 times the powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], x: float) -> None:
    """Write (value, text, tone) right of the lines' ends, moved apart where they would touch."""
    axes.set_xlim(right=x)
    to_height = axes.transData + axes.transAxes.inverted()
    wanted = np.array([to_height.transform((x, value))[1] for value, _, _ in ends])
    order = wanted.argsort(kind="stable")
    places = wanted[order]
    for _ in range(200):  # push neighbours apart, evenly to both sides
        for i in range(len(places) - 1):
            short = GAP - (places[i + 1] - places[i])
            if short > 1e-6:
                places[i] -= short / 2
                places[i + 1] += short / 2
    for i in range(len(places)):  # and none below the axis
        places[i] = max(places[i], 0.02 if i == 0 else places[i - 1] + GAP)
    for place, index in zip(places, order, strict=True):
        _, text, tone = ends[index]
        axes.text(1.03, float(place), text, transform=axes.transAxes, va="center", color=TONES[tone])
