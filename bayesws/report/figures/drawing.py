"""Figures drawn once and shown twice: inline in a page that may be light or dark, and as PDF and PNG for papers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bayesws.io.files import write_whole

WIDTH = 3.5  # inches, a column of a paper; as wide as a phone's page, 8 pt are then 11 CSS pixels
TONES = {  # name in the page's style sheet: colour on paper
    "ink": "#1c2126",
    "muted": "#636b75",
    "rule": "#dfe3e7",
    "accent": "#0b6e4f",
    "warm": "#b85c07",
    "cool": "#2464a8",
    "plum": "#7d4a9e",
    "grey": "#878f98",
}
PLUS, MINUS = (22, 138, 102), (217, 115, 13)  # of images: to be seen on white and on black
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": TONES["muted"],
    "axes.labelcolor": TONES["muted"],
    "axes.titlecolor": TONES["ink"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": TONES["ink"],
    "text.parse_math": False,  # names of layers and tasks are anybody's
    "xtick.color": TONES["muted"],
    "ytick.color": TONES["muted"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
FILES: dict[str, dict[str, Any]] = {"pdf": {"metadata": {"CreationDate": None}}, "png": {"dpi": 300}}


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: of its files, in words, such as "turned-lift-stack".
        title: what is shown, a few words.
        note: how to read it, one or two sentences; may be empty.
        draw: makes it, within the report's style.
    """

    name: str
    title: str
    note: str
    draw: Callable[[], Figure]

    @property
    def file(self) -> str:
        """`name` as a file and an id may have it."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.")

    def svg(self) -> str:
        """An <svg> element for an HTML page, its colours the page's variables; equal input gives equal text."""
        with rc_context(STYLE | {"svg.hashsalt": self.file}):
            figure, text = self._laid_out(), StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return _inline(text.getvalue(), self.file.replace(".", "-"))

    def save(self, folder: Path) -> list[Path]:
        """Write `file`.pdf and `file`.png, on white.

        Raises:
            ValueError: a folder that cannot be written.
        """
        written = []
        with rc_context(STYLE | {"savefig.facecolor": "white"}):
            figure = self._laid_out()
            for ending, settings in FILES.items():
                path = folder / f"{self.file}.{ending}"
                write_whole(path, partial(figure.savefig, format=ending, **settings))
                written.append(path)
        return written

    def _laid_out(self) -> Figure:
        """The figure, laid out once for all that it is saved as."""
        figure = self.draw()
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)
        figure.set_layout_engine("none")
        return figure


def new_figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a column, `height` inches high, and its axes row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _inline(svg: str, name: str) -> str:
    """What an HTML page needs of an SVG file: no prolog, no namespaces, ids of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", svg)  # equal images have equal ones
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', svg)
    viewbox = re.search(r'viewBox="([^"]+)"', svg)
    assert viewbox is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{viewbox[1]}" aria-hidden="true" focusable="false">', svg, count=1)
    for tone, colour in TONES.items():
        svg = svg.replace(colour, f"var(--{tone})")
    return svg.strip()
