"""A report: one HTML file about any runs, to be read without a network, on a phone and in print, in light and dark."""

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bayesws.analysis.report.runs import Run, sections_of
from bayesws.analysis.report.section import Section, together
from bayesws.files import write_whole

__all__ = ["Run", "write_report"]


def write_report(runs: Run | Sequence[Run], path: str | Path, figures: str | Path | None = None) -> list[Path]:
    """Write a report about runs as one HTML file, whole or not at all, and its figures for papers.

    Equal runs give equal bytes. A fit that kept its posterior gets intervals by `sharing_strength`: seconds a fit.

    Args:
        runs: folders that `bayesws fit`, `compare`, `select`, `strength` and `study` wrote, or results themselves (a
            fit of a network that is not of `bayesws.models` can only be given as a `FitResult`).
        path: of the HTML file.
        figures: a folder for a PDF and a PNG file of every figure; None writes none.

    Returns:
        What was written: the report, then the figures.

    Raises:
        ValueError: no run, a folder that is no run or is damaged, a place that cannot be written.
    """
    given = [runs] if isinstance(runs, str | Path) or not isinstance(runs, Sequence) else list(runs)
    if not given:
        raise ValueError("no run: expected at least one folder or result")
    names = _names(given)
    sections = [section for run, name in zip(given, names, strict=True) for section in sections_of(run, name)]
    html = page(sections, f"Report: {together(names)}")
    target = Path(path)
    write_whole(target, lambda draft: draft.write_text(html, encoding="utf-8"))
    written = [target]
    if figures is not None:
        drawings = [d for section in sections for block in section.blocks for d in block.drawings]
        for drawing in drawings:
            written += drawing.save(Path(figures))
    return written


def page(sections: Sequence[Section], title: str) -> str:
    """The HTML text."""
    here = files(__package__)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    style = Markup(here.joinpath("page.css").read_text(encoding="utf-8"))  # ours, and no input
    return template.render(title=title, sections=sections, style=style, svg=lambda drawing: Markup(drawing.svg()))


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for every run, no two alike."""
    names = [(Path(run).resolve().name if isinstance(run, str | Path) else type(run).__name__) or "run" for run in runs]
    counts, seen = Counter(names), Counter[str]()
    for place, name in enumerate(names):
        seen[name] += 1
        if counts[name] > 1:
            names[place] = f"{name}-{seen[name]}"
    return names
