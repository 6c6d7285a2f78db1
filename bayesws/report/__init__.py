"""A report: one HTML file about any runs, to be read without a network, on a phone and in print, in light and dark."""

from collections.abc import Sequence
from pathlib import Path

from bayesws.io.arguments import path_of
from bayesws.report.reportable import Run


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
    # matplotlib and jinja take a second to import: only those who ask for a report should wait
    from bayesws.report.page import write

    given = [runs] if isinstance(runs, str | Path) or not isinstance(runs, Sequence) else list(runs)
    if not given:
        raise ValueError("no run: expected at least one folder or result")
    if strange := [type(run).__name__ for run in given if not isinstance(run, Run)]:
        raise ValueError(f"a {strange[0]} in the place of a run: expected a folder or a result")
    given = [path_of(run) if isinstance(run, str | Path) else run for run in given]
    return write(given, path_of(path), None if figures is None else path_of(figures))
