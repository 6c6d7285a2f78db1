"""The sections of a ranking, of measured symmetries and of a study."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bayesws.analysis.decomposition import OrbitDecomposition, decomposition_table
from bayesws.analysis.equivariance import EquivarianceError, error_table
from bayesws.analysis.strength import SharingStrength
from bayesws.report.figures.curves import size_curves
from bayesws.report.figures.dots import Mark, dot_chart
from bayesws.report.figures.drawing import Drawing
from bayesws.report.grid import grid_of
from bayesws.report.run_files import Explained, Posterior, StrengthFile, StudyFile
from bayesws.report.sections.fit import strength_mark
from bayesws.report.sections.section import Block, Origin, Section, signed
from bayesws.trials.comparison import Summary
from bayesws.trials.ranking import LayerRanking, Ranking
from bayesws.trials.study_table import rows, study_groups_table, study_table

TONES = ("accent", "warm", "cool", "plum", "grey", "ink")
SHOWN_FACTORS = 12  # networks of the figure


def ranking_section(found: Ranking | LayerRanking, name: str) -> Section:
    """All about a ranking, of whole networks or by layers."""
    ranking = found.ranking if isinstance(found, LayerRanking) else found
    factors, best = ranking.log_bayes_factors, ranking.best
    summary = [f"{line[0].upper()}{line[1:]}." for line in (ranking.disagreement(),) if line]
    summary.append(f"{ranking.verdict}.")
    if ranking.within_spread:
        summary.append(f"{ranking.within_spread[0].upper()}{ranking.within_spread[1:]}.")
    if isinstance(found, LayerRanking):
        layers = ", ".join(f"layer {i + 1} {group}" for i, group in enumerate(found.chosen))
        summary.append(f"Layer by layer: {layers}.")
    marks = [
        Mark(row.name, factors[row.name], signed(factors[row.name], 1), tone="grey" if place else "accent")
        for place, row in enumerate(ranking.rows[:SHOWN_FACTORS])
    ]
    drawing = Drawing(
        f"{name}-bayes-factors",
        "How far the others are behind",
        "Log evidence less that of the best, nats, of the best start of each"
        + (
            ": e to this power are the odds."
            if ranking.exact
            else f" ({ranking.settings.get('bound', 'no bound recorded')})."
        ),
        lambda: dot_chart(marks, "log evidence less the best, nats"),
    )
    grids = [grid_of(ranking.table()), grid_of(ranking.sharing_table())]
    if isinstance(found, LayerRanking):
        grids.insert(0, grid_of(found.table()))
    blocks = [Block("By evidence", drawings=[drawing], grids=grids)]
    notes = [f"{row.name}: {note}" for row in ranking.rows for note in row.notes]
    notes += [ranking.doubt] if ranking.doubt else []
    if notes:
        blocks.append(Block("To be known", notes=notes))
    blocks.append(Origin(ranking.settings).block(**{"best seed": best.seed}))
    return Section("Ranking", name, summary, blocks)


def strength_section(record: StrengthFile, name: str) -> Section:
    """All about measured symmetries."""
    errors = record.errors
    summary = [f"{record.model}, measured on {record.images} images of {record.data}: 0 is equivariant, 1 unrelated."]
    ends = {transform: list(found.items())[-1] for transform, found in errors.items() if found}
    if ends:
        said = [f"{transform} {e.error:.2f}" for transform, (_, e) in ends.items() if not math.isnan(e.error)]
        last = next(iter(ends.values()))[0] or "the output"
        summary.append(f"Equivariance error up to layer {last!r}: {', '.join(said)}.")
    marks = {transform: _error_marks(found) for transform, found in errors.items()}
    top = max([1.0, *(mark.interval[1] for some in marks.values() for mark in some if mark.interval is not None)])
    drawings = [
        Drawing(
            f"{name}-error-{transform.replace(':', '-')}",
            f"{transform}: equivariance error",
            "Of the network up to each layer, with its 95 % interval over images.",
            lambda transform=transform, some=some: dot_chart(  # type: ignore[misc]
                some, "equivariance error", (0, top), title=transform
            ),
        )
        for transform, some in marks.items()
        if some
    ]
    blocks = [Block("What the network does", drawings=drawings, grids=[grid_of(error_table(errors))])]
    if record.explained:
        explained = {transform: _decompositions(transform, found) for transform, found in record.explained.items()}
        blocks.append(Block("What sharing would explain", grids=[grid_of(decomposition_table(explained))]))
    if record.sharing is not None:
        blocks.insert(0, _posterior_block(record.sharing, name))
    made = {k: v for k, v in asdict(record).items() if k not in ("errors", "sharing", "explained", "best")}
    return Section("Symmetry", name, summary, [*blocks, Origin(made).block()])


def study_section(record: StudyFile, name: str) -> Section:
    """All about a study."""
    trials = [asdict(trial) for trial in record.trials]
    cells = list(rows(trials))
    if not cells:
        raise ValueError(f"study {name} holds no trial: run it again")
    summary, drawings = [], []
    for task in dict.fromkeys(cell[0] for cell in cells):
        mine = [cell for cell in cells if cell[0] == task]
        largest = max(size for _, size, _, _ in mine)
        scores = {m: Summary.of([r["nll"] for r in found]) for _, size, m, found in mine if size == largest}
        best = min(scores, key=lambda method: scores[method].mean)
        summary.append(
            f"{task}, {largest} images: {best} has the least test NLL, {scores[best].show(3)} nats per datum."
        )
        measures: list[tuple[str, str, Callable[[dict[str, Any]], float]]] = [
            ("error", "test error, %", lambda r: 100 * (1 - r["accuracy"])),
            ("nll", "test NLL, nats per datum", lambda r: r["nll"]),
        ]
        drawings += [
            Drawing(
                f"{name}-{task.replace(':', '-')}-{key}",
                f"{task}: {label.split(',')[0]}",
                "Less is better; means over seeds.",
                lambda mine=mine, label=label, value=value: _study_chart(mine, label, value),  # type: ignore[misc]
            )
            for key, label, value in measures
        ]
    grids = [grid_of(study_table(cells))]
    if (groups := study_groups_table(cells)).row_count:
        grids.append(grid_of(groups))
    made = {"command": record.command, "versions": record.versions}
    seeds = ", ".join(map(str, sorted({r["settings"]["seed"] for r in trials})))
    blocks = [Block("How well", drawings=drawings, grids=grids), Origin(made).block(seeds=seeds)]
    return Section("Study", name, summary, blocks)


def _decompositions(transform: str, found: Mapping[str, Explained | None]) -> dict[str, OrbitDecomposition]:
    """Of every layer; nan throughout where it was not measured."""
    nothing = Explained(math.nan, (math.nan, math.nan), math.nan, math.nan, 0, {})
    return {layer: (row or nothing).decomposition(transform) for layer, row in found.items()}


def _error_marks(found: Mapping[str, EquivarianceError]) -> list[Mark]:
    return [
        Mark(layer or "output", e.error, f"{e.error:.2f}", e.interval)
        for layer, e in found.items()
        if not math.isnan(e.error)
    ]


def _posterior_block(record: Posterior, name: str) -> Block:
    posterior = SharingStrength(record.layers, record.method, record.settings, record.notes, {})
    marks = [strength_mark(row) for row in record.layers]
    drawing = Drawing(
        f"{name}-strength",
        "Sharing strength of each layer",
        f"Posterior median and 95 % credible interval of ρ ({posterior.method}).",
        lambda: dot_chart(marks, "sharing strength ρ", (0, 1)),
    )
    return Block("What its layers share", drawings=[drawing], grids=[grid_of(posterior.table())], notes=posterior.notes)


def _study_chart(cells: Sequence[tuple[str, int, str, list[dict[str, Any]]]], label: str, value: Callable) -> Any:
    """Curves over the number of images, or rows of dots where there is one number."""
    methods = list(dict.fromkeys(method for _, _, method, _ in cells))
    tones = {method: TONES[i % len(TONES)] for i, method in enumerate(methods)}
    found = {(m, size): Summary.of([value(r) for r in records]) for _, size, m, records in cells}
    if len({size for _, size in found}) == 1:
        marks = []
        for (method, _), score in found.items():
            interval = None if math.isnan(score.error) else (score.mean - score.error, score.mean + score.error)
            marks.append(Mark(method, score.mean, score.show(3 if "NLL" in label else 2), interval))
        return dot_chart(marks, label, (0, None))
    curves = []
    for method in methods:
        mine = sorted((size, score.mean) for (m, size), score in found.items() if m == method)
        curves.append((method, [s for s, _ in mine], [v for _, v in mine], tones[method]))
    return size_curves(curves, label)
