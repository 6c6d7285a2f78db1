"""Stacked bars: a row a layer, and how it is parted."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from bayesws.report.figures.dots import ROW, shortened
from bayesws.report.figures.drawing import TONES, new_figure

THICK = 0.62  # of a row


def stacked_chart(rows: Sequence[tuple[str, Mapping[str, float]]], tones: Mapping[str, str], xlabel: str) -> Figure:
    """Rows of bars from 0 to 1, top to bottom, each in its parts, whose names are above.

    Args:
        rows: label, and by part its share; what is nan is left white.
        tones: by part, in the order of the bars; see `drawing.TONES`.
        xlabel: what the shares are of.
    """
    figure, (axes,) = new_figure(0.75 + ROW * max(len(rows), 2))
    places, starts = range(len(rows)), [0.0] * len(rows)
    for part, tone in tones.items():
        shares = [max(0.0, parts.get(part, 0.0)) for _, parts in rows]  # nan is not above 0
        axes.barh(places, shares, THICK, left=starts, color=TONES[tone], label=part, linewidth=0)
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_yticks(places, [shortened(label) for label, _ in rows], color=TONES["ink"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(xlabel)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, handlelength=1.0, columnspacing=1.2)
    return figure
