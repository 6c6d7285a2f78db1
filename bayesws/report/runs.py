"""What a run's folder holds, as sections of a report."""

import math
from collections.abc import Callable
from pathlib import Path

from bayesws.io.json_files import read_json
from bayesws.report.reportable import Run
from bayesws.report.run_files import StrengthFile, StudyFile
from bayesws.report.sections.comparison import comparison_section
from bayesws.report.sections.fit import fit_section
from bayesws.report.sections.others import ranking_section, strength_section, study_section
from bayesws.report.sections.section import Section
from bayesws.training.result import FitResult
from bayesws.trials.comparison import Comparison
from bayesws.trials.ranking import LayerRanking, Ranking, RankingFile

DAMAGED = (
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    StopIteration,
)  # of a record with parts missing


def sections_of(run: Run, name: str) -> list[Section]:
    """The sections of one run.

    Args:
        run: a folder, or a result.
        name: what the report calls it.

    Raises:
        ValueError: a folder that is missing, is no run, or is damaged.
    """
    if isinstance(run, FitResult):
        return [fit_section(run, name)]
    if isinstance(run, Comparison):
        return [comparison_section(run, name)]
    if isinstance(run, Ranking | LayerRanking):
        return [ranking_section(run, name)]
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: expected one that bayesws {', '.join(VERBS)} wrote")
    files = [folder / file for file in READERS if (folder / file).is_file()]
    if not files:
        raise ValueError(
            f"{folder} is no run: expected {', '.join(READERS)} in it, as bayesws {', '.join(VERBS)} write"
        )
    sections = []
    for file in files:
        try:
            sections += READERS[file.name](file, name)
        except DAMAGED as error:
            raise ValueError(f"{file} is damaged: {type(error).__name__} {error}") from error
    return sections


def _fit(file: Path, name: str) -> list[Section]:
    return [fit_section(FitResult.load(file.parent), name)]


def _comparison(file: Path, name: str) -> list[Section]:
    """The comparison, and the fits that it kept."""
    comparison = Comparison.load(file)
    order = [f"{t.task}-{t.pathways}-{t.objective}-{t.seed}".replace(":", "_") for t in comparison.trials]
    folders = sorted(fit.parent for fit in file.parent.glob("fits/*/fit.json"))
    folders.sort(key=lambda folder: order.index(folder.name) if folder.name in order else len(order))
    fits = {folder: FitResult.load(folder) for folder in folders}
    for folder, fit in fits.items():
        trial = comparison.trials[order.index(folder.name)] if folder.name in order else None
        if trial is None or not math.isclose(fit.log_evidence, trial.log_evidence, rel_tol=1e-4):
            raise ValueError(f"{folder} holds a fit of another run than {file}: remove the folder, or compare again")
    return [comparison_section(comparison, name), *(fit_section(fit, f.name, name) for f, fit in fits.items())]


def _ranking(file: Path, name: str) -> list[Section]:
    by_layer = RankingFile.read(file).layers is not None
    return [ranking_section(LayerRanking.load(file) if by_layer else Ranking.load(file), name)]


def _strength(file: Path, name: str) -> list[Section]:
    return [strength_section(read_json(file, StrengthFile, "run bayesws strength again"), name)]


def _study(file: Path, name: str) -> list[Section]:
    return [study_section(read_json(file, StudyFile, "run bayesws study again"), name)]


READERS: dict[str, Callable[[Path, str], list[Section]]] = {
    "fit.json": _fit,
    "comparison.json": _comparison,
    "ranking.json": _ranking,
    "strength.json": _strength,
    "study.json": _study,
}
VERBS = ("fit", "compare", "select", "strength", "study")
