"""One kind of chart for most of what a report shows: a row a thing, its value a dot or a bar, its number beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesws.report.figures.drawing import TONES, new_figure

LONGEST = 26  # characters of a label
ROW = 0.24  # inches


@dataclass(frozen=True)
class Mark:
    """One row.

    Attributes:
        label: on the left.
        value: where the dot is, or the bar ends.
        text: on the right.
        interval: (low, high), a line through the dot.
        points: single values, small dots.
        tone: see `drawing.TONES`.
        group: heading above it, once for neighbours that have it in common; "" for none.
    """

    label: str
    value: float
    text: str
    interval: tuple[float, float] | None = None
    points: Sequence[float] = field(default_factory=tuple)
    tone: str = "accent"
    group: str = ""


def dot_chart(
    marks: Sequence[Mark],
    xlabel: str,
    limits: tuple[float | None, float | None] = (None, None),
    bars: bool = False,
    title: str = "",
) -> Figure:
    """Rows of dots, top to bottom, each with its interval, its single values and its number at the right.

    Args:
        marks: the rows.
        xlabel: what the values are, and their unit.
        limits: of the axis; None leaves an end to the values.
        bars: draw bars from 0 instead of dots.
        title: above, in bold; may be empty.
    """
    places, headings = _places(marks)
    count = max(len(marks) + len(headings), 2)
    figure, (axes,) = new_figure(0.45 + ROW * count + (0.15 if title else 0))
    beside = axes.get_yaxis_transform()
    for place, group in headings:
        axes.text(0, place, shortened(group), transform=beside, va="center_baseline", color=TONES["ink"], weight="bold")
    for place, mark in zip(places, marks, strict=True):
        axes.axhline(place, color=TONES["rule"], linewidth=0.6, zorder=0)
        _draw(axes, place, mark, bars)
        axes.text(1.05, place, mark.text, transform=beside, va="center_baseline", color=TONES["ink"])
    axes.set_yticks(places, [shortened(mark.label) for mark in marks], color=TONES["ink"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(*limits)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(xlabel)
    if title:
        axes.set_title(title, fontweight="bold", fontsize=9.5)
    return figure


def _places(marks: Sequence[Mark]) -> tuple[list[int], list[tuple[int, str]]]:
    """The rows of the marks, and of the headings of their groups."""
    places, headings, row, before = [], [], 0, ""
    for mark in marks:
        if mark.group and mark.group != before:
            headings.append((row, mark.group))
            row += 1
        places.append(row)
        row, before = row + 1, mark.group
    return places, headings


def _draw(axes: Axes, place: int, mark: Mark, bar: bool) -> None:
    colour = TONES[mark.tone]
    if bar:
        axes.plot([0, mark.value], [place, place], color=colour, linewidth=6, solid_capstyle="butt")
        return
    if mark.interval is not None:
        axes.plot(mark.interval, [place, place], color=colour, linewidth=2, solid_capstyle="round", clip_on=False)
    axes.plot(mark.points, [place] * len(mark.points), "o", ms=3.5, mew=0, color=colour, alpha=0.5, clip_on=False)
    marker, size, edge = ("|", 9, 1.8) if mark.points else ("o", 5.5, 0)
    axes.plot([mark.value], [place], marker, ms=size, mew=edge, color=colour, clip_on=False)


def shortened(name: str) -> str:
    """A name that fits beside a chart: its end is what tells layers apart."""
    return name if len(name) <= LONGEST else f"…{name[-LONGEST + 1 :]}"
