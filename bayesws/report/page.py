"""The report as one document: its sections, laid out in HTML, and its figures as files."""

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bayesws.io.files import write_whole
from bayesws.io.tables import visible
from bayesws.report.reportable import Run
from bayesws.report.runs import sections_of
from bayesws.report.sections.section import Section, together


def write(runs: Sequence[Run], path: Path, figures: Path | None) -> list[Path]:
    """`write_report`, its arguments in order."""
    names = _names(runs)
    sections = [section for run, name in zip(runs, names, strict=True) for section in sections_of(run, name)]
    html = page(sections, f"Report: {together(names)}")
    write_whole(path, lambda draft: draft.write_text(html, encoding="utf-8"))
    drawings = [d for section in sections for block in section.blocks for d in block.drawings]
    return [path, *(file for d in drawings if figures is not None for file in d.save(figures))]


def page(sections: Sequence[Section], title: str) -> str:
    """The HTML text."""
    here = files("bayesws.report")
    environment = Environment(
        autoescape=True,
        finalize=_seen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    style = Markup(here.joinpath("page.css").read_text(encoding="utf-8"))  # ours, and no input
    return template.render(title=title, sections=sections, style=style, svg=lambda drawing: Markup(drawing.svg()))


def _seen(value: Any) -> Any:
    """What is written into the page: of a text what can be seen; figures are as they are."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for every run, no two alike."""
    names = [(Path(run).resolve().name if isinstance(run, str | Path) else type(run).__name__) or "run" for run in runs]
    counts, seen = Counter(names), Counter[str]()
    for place, name in enumerate(names):
        seen[name] += 1
        if counts[name] > 1:
            names[place] = f"{name}-{seen[name]}"
    return names
