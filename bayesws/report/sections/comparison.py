"""The section of a comparison: what each layer shares under each objective, and how well that does."""

import math
from collections.abc import Callable
from statistics import mean

from rich.table import Table

from bayesws.report.figures.dots import Mark, dot_chart
from bayesws.report.figures.drawing import Drawing
from bayesws.report.grid import grid_of
from bayesws.report.sections.section import (
    WORDS,
    Block,
    Origin,
    Section,
    of_rho,
    together,
    tones_of,
    tones_of_pathways,
)
from bayesws.training.result import SharingRow
from bayesws.trials.by_layer import mean_effective, mean_strength, rows_by_layer
from bayesws.trials.comparison import Comparison, Summary
from bayesws.trials.records import Trial

Cells = dict[tuple[str, str], list[Trial]]


def comparison_section(comparison: Comparison, name: str) -> Section:
    """All about a comparison.

    Args:
        comparison: as `Comparison.load` gives it.
        name: of its folder.

    Raises:
        ValueError: a comparison without trials.
    """
    if not comparison.trials:
        raise ValueError(f"comparison {name} holds no trial: run it again")
    cells = comparison.cells()
    tasks = list(dict.fromkeys(task for task, _, _ in cells))
    by_task = {task: {(s, o): trials for (t, s, o), trials in cells.items() if t == task} for task in tasks}
    blocks = [
        Block("Layer by layer", drawings=[d for t in tasks for d in _layers(t, by_task[t], name)]),
        Block("How well", drawings=_scores(comparison, name)),
        Block("Tables", grids=[grid_of(table) for table in _tables(comparison)]),
    ]
    notes = [
        f"{t.task}, {t.pathways}, {t.objective}, seed {t.seed}: {note}" for t in comparison.trials for note in t.notes
    ]
    notes += [comparison.doubt] if comparison.doubt else []
    if notes:
        blocks.append(Block("To be known", notes=notes))
    settings = dict(comparison.settings)
    seeds = sorted({t.seed for t in comparison.trials})
    objectives = list(dict.fromkeys(objective for _, _, objective in cells))
    settings |= {"seeds": ", ".join(map(str, seeds)), "tasks": tasks, "objectives": objectives}
    settings.pop("elsewhere", None)  # of the first task alone
    blocks.append(Origin(settings).block())
    summary = [s for task in tasks for s in _sentences(task, by_task[task])]
    cost = comparison.cost()
    if not math.isnan(cost):
        summary.append(f"One training by the evidence took {cost:.2f} times as long as one by the task loss (median).")
    return Section("Comparison", name, summary, blocks)


def _tables(comparison: Comparison) -> list[Table]:
    """Those that have something to say."""
    tables = [comparison.table(), comparison.calibration_table()]
    if any(t.objective == "evidence" for t in comparison.trials) and comparison.differences():
        tables.append(comparison.difference_table())
    tables += [comparison.elsewhere_table(), comparison.sharing_table()]
    return [table for table in tables if table.row_count]


def _sentences(task: str, cells: Cells) -> list[str]:
    """What the layers share by the evidence, and how its likelihood compares."""
    parts = []
    by_evidence = cells.get(("both", "evidence"))
    if by_evidence:
        strengths = [f"{layer} {of_rho(mean_strength(rows))}" for layer, rows in _sharing_layers(by_evidence).items()]
        parts.append(f"ρ by the evidence is {together(strengths)}" if strengths else "")
    scores = [
        f"{Summary.of([t.nll for t in trials]).show(3)} by {WORDS.get(objective, objective)}"
        for (pathways, objective), trials in cells.items()
        if pathways == "both"
    ]
    if scores:
        parts.append(f"test NLL is {together(scores)}")
    said = "; ".join(part for part in parts if part)
    return [f"{task}: {said}."] if said else []


def _layers(task: str, cells: Cells, name: str) -> list[Drawing]:
    both = {o: trials for (s, o), trials in cells.items() if s == "both" and trials[0].sharing}
    if not both:
        return []
    tones = tones_of(list(both))
    marks = [
        Mark(
            objective,
            mean(values),
            of_rho(mean(values)),
            points=values if len(values) > 1 else (),
            tone=tones[objective],
            group=layer,
        )
        for layer in _sharing_layers(next(iter(both.values())))
        for objective, trials in both.items()
        for values in [[row.strength for row in rows_by_layer(trials).get(layer, [])]]
        if values
    ]
    several = any(len(trials) > 1 for trials in both.values())
    drawings = []
    if marks:
        note = "ρ of every layer that can share, under each objective."
        drawings.append(
            Drawing(
                f"{name}-{task}-strength",
                f"{task}: sharing strength",
                note + (" Dots are seeds, the bar is their mean." if several else ""),
                lambda: dot_chart(marks, "sharing strength ρ", (0, 1), title=task),
            )
        )
    if "evidence" in both:
        drawings.append(_effective(task, both["evidence"], name))
    return drawings


def _sharing_layers(trials: list[Trial]) -> dict[str, list[SharingRow]]:
    """Rows over trials by layer, of those that have a strength."""
    return {name: rows for name, rows in rows_by_layer(trials).items() if not math.isnan(rows[0].strength)}


def _effective(task: str, trials: list[Trial], name: str) -> Drawing:
    tones = tones_of_pathways(trials[0].sharing)
    marks = [
        Mark(
            pathway,
            100 * used / rows[0].parameters[pathway],
            f"{used:.1f} of {rows[0].parameters[pathway]}",
            tone=tones.get(pathway, "grey"),
            group=layer,
        )
        for layer, rows in rows_by_layer(trials).items()
        for pathway, used in mean_effective(rows).items()
    ]
    return Drawing(
        f"{name}-{task}-effective",
        f"{task}: parameters in use",
        "Effective parameters γ by the evidence, as a share of those that there are.",
        lambda: dot_chart(marks, "in use, %", (0, 100), bars=True, title=task),
    )


def _scores(comparison: Comparison, name: str) -> list[Drawing]:
    """Held-out likelihood and, of a classification, error of every objective and choice of pathways, task by task."""
    several = any(len(trials) > 1 for trials in comparison.cells().values())
    note = "Less is better." + (" The line is one standard error over seeds to either side." if several else "")

    def drawing(key: str, title: str, unit: str, value: Callable[[Trial], float], digits: int) -> Drawing:
        marks = _score_marks(comparison, value, digits)
        return Drawing(f"{name}-{key}", f"{title} by task", note, lambda: dot_chart(marks, unit, (0, None)))

    drawings = [drawing("nll", "Test NLL", "test NLL, nats per datum", lambda t: t.nll, 3)]
    if not any(math.isnan(trial.accuracy) for trial in comparison.trials):
        drawings.append(drawing("error", "Test error", "test error, %", lambda t: 100 * (1 - t.accuracy), 1))
    return drawings


def _score_marks(comparison: Comparison, value: Callable[[Trial], float], digits: int) -> list[Mark]:
    cells = comparison.cells()
    tones, several = tones_of([o for _, _, o in cells]), len({s for _, s, _ in cells}) > 1
    marks = []
    for (task, pathways, objective), trials in cells.items():
        found = Summary.of([value(t) for t in trials])
        interval = None if math.isnan(found.error) else (found.mean - found.error, found.mean + found.error)
        label = f"{objective}, {pathways}" if several else objective
        marks.append(Mark(label, found.mean, found.show(digits), interval, tone=tones[objective], group=task))
    return marks
