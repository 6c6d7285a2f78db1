"""The section of one fit: what each layer shares, over which group, and how the training went."""

import math
import warnings
from dataclasses import asdict

from torch import Tensor

from bayesws.analysis.strength import (
    LayerStrength,
    SharingStrength,
    measurable_layers,
    sharing_strength,
)
from bayesws.layers.contract import structures
from bayesws.report.figures.curves import evidence_curves, loss_curve
from bayesws.report.figures.dots import Mark, dot_chart
from bayesws.report.figures.drawing import Drawing
from bayesws.report.figures.stacked import stacked_chart
from bayesws.report.grid import Grid, as_words
from bayesws.report.sections.layer import group_of, layer_block, sharing_layers
from bayesws.report.sections.section import (
    WORDS,
    Block,
    Origin,
    Section,
    of_rho,
    signed,
    tones_of_names,
    tones_of_pathways,
)
from bayesws.training.result import FitResult, SharingRow
from bayesws.trials.by_layer import in_use

SAMPLING = {"chains": 2, "draws": 300, "warmup": 150}  # where it takes NUTS
FEW = 8  # numbers of a learned structure that are shown one by one
UNDETERMINED = 0.6  # an interval of ρ that is wider says nothing
DEGREES = ((0.95, "shares nearly everything"), (0.7, "mostly shares"), (0.3, "shares in part"), (0.05, "shares little"))


def fit_section(fit: FitResult, name: str, within: str = "") -> Section:
    """All about a fit.

    Args:
        fit: as `FitResult.load` gives it.
        name: of its folder.
        within: name of the run that it is a part of.
    """
    start = f"{within}-{name}" if within else name
    posterior = posterior_of(fit)
    known = _by_layer(posterior)
    evidence, rows, measurable = fit.evidence, fit.sharing, measurable_layers(fit.model)
    sharing = [row for row in rows if not math.isnan(row.strength)]
    examples = max(evidence.examples, 1)
    objective = fit.recipe.objective
    summary = [
        f"{type(fit.model).__name__} trained by {WORDS.get(objective, objective)} on {examples} data: "
        f"log evidence {signed(evidence.log_evidence, 1)} nats, {signed(evidence.log_evidence / examples, 3)} a datum.",
        *(_sentence(row, known.get(row.name), group_of(fit, row.name), row.name in measurable) for row in sharing),
    ]
    figures = [("log evidence", signed(evidence.log_evidence, 1), "nats")]
    if test := fit.provenance.more.get("test"):
        figures.append(("test NLL", f"{test['nll']:.3f}", f"accuracy {100 * test['accuracy']:.1f} %"))
    figures += [
        (f"ρ, {row.name}", _point(row, known.get(row.name)), _interval(known.get(row.name))) for row in sharing[:3]
    ]
    blocks = [_layers_block(fit, posterior, start)] if rows else []
    blocks += [layer_block(name, layer, start) for name, layer in sharing_layers(fit)]
    blocks.append(_training_block(fit, start))
    if fit.starts:
        blocks.append(Block("Starts", grids=[_starts_table(fit)]))
    if fit.notes or (posterior is not None and posterior.notes):
        blocks.append(Block("To be known", notes=[*fit.notes, *(posterior.notes if posterior is not None else [])]))
    made = {
        "seed": fit.recipe.seed,
        "objective": fit.recipe.objective,
        "likelihood": fit.likelihood.name,
        "network": _network(fit),
        "curvature": {k: v for k, v in asdict(fit.recipe.curvature).items() if v is not None},
        "the evidence is": fit.evidence.curvature.bound,
        "weight decay": fit.recipe.weight_decay,
        "seconds": round(fit.provenance.seconds, 1),
    }
    known_of_data = {k: v for k, v in fit.provenance.more.items() if k != "test"}
    origin = Origin(
        {"versions": fit.provenance.versions} | known_of_data, f"as of {within}" if within else "not recorded"
    )
    blocks.append(origin.block(**made, schedule=fit.recipe.schedule, settings=fit.recipe.settings))
    return Section("Fit", name, summary, blocks, figures, within)


def posterior_of(fit: FitResult) -> SharingStrength | None:
    """The posterior of every layer's sharing strength; None where the fit kept none, or has nothing to be sure of."""
    if fit.recipe.objective != "evidence" or not fit.posterior or not measurable_layers(fit.model):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its notes are shown
        return sharing_strength(fit, **SAMPLING)


def _by_layer(posterior: SharingStrength | None) -> dict[str, LayerStrength]:
    return {} if posterior is None else {row.name: row for row in posterior.layers}


def strength_mark(layer: LayerStrength) -> Mark:
    """ρ of a layer by its posterior: median and interval."""
    return Mark(layer.name, layer.median, f"{layer.median:.3f}", layer.interval)


def _layers_block(fit: FitResult, posterior: SharingStrength | None, start: str) -> Block:
    rows, known = fit.sharing, _by_layer(posterior)
    strengths = [
        strength_mark(known[r.name]) if r.name in known else Mark(r.name, r.strength, of_rho(r.strength))
        for r in rows
        if not math.isnan(r.strength)
    ]
    tones = tones_of_pathways(rows)
    used = [
        Mark(
            pathway,
            100 * row.effective[pathway] / max(count, 1),
            f"{row.effective[pathway]:.1f} of {count}",
            tone=tones[pathway],
            group=row.name,
        )
        for row in rows
        for pathway, count in row.parameters.items()
    ]
    if posterior is not None:
        how = f"The dot is the posterior's median, the line its 95 % credible interval ({posterior.method})."
    else:
        how = "The dot is ρ at the fitted precisions; no interval: " + (
            "precisions are not learned by this objective."
            if fit.recipe.objective != "evidence"
            else "no posterior was kept."
        )
    of_strength = Drawing(
        f"{start}-strength",
        "Sharing strength of each layer",
        f"ρ = 1 shares exactly, as a group convolution does, 0 not at all. {how}",
        lambda: dot_chart(strengths, "sharing strength ρ", (0, 1)),
    )
    effective = Drawing(
        f"{start}-effective",
        "Parameters in use",
        "Effective parameters γ of every pathway, as a share of those that there are.",
        lambda: dot_chart(used, "in use, %", (0, 100), bars=True),
    )
    drawings = [*[of_strength] * bool(strengths), *branches_drawings(rows, start), effective]
    return Block("Layer by layer", _learned(fit), drawings, grids=[_table(fit, rows, known)])


def branches_drawings(rows: list[SharingRow], start: str) -> list[Drawing]:
    """The picture of what layers use of their branches, one; none where no layer is a sum of them."""
    parted = [(row.name or "the network", row.shares) for row in rows if row.branches]
    tones = tones_of_names(name for _, shares in parted for name in shares)
    drawing = Drawing(
        f"{start}-branches",
        "Branches in use",
        "A branch uses γ / P of its P weights, its biases left out; a bar is how these are parted.",
        lambda: stacked_chart(parted, tones, "share of relative effective parameters"),
    )
    return [drawing] if parted else []


def _learned(fit: FitResult) -> list[str]:
    """What structure without a picture of its own was learned, a line a layer: a lengthscale, say."""
    pictured = dict(sharing_layers(fit))
    return [
        f"{name or 'the network'} learned {_as_numbers(structure.status().value)}."
        for name, structure in structures(fit.model).items()
        if name not in pictured
    ]


def _as_numbers(value: Tensor) -> str:
    """A few numbers as they are; of many their shape and range."""
    value = value.detach().flatten() if value.numel() <= FEW else value.detach()
    if value.ndim <= 1:
        return ", ".join(f"{number:.4g}" for number in value.tolist())
    shape = " × ".join(map(str, value.shape))
    return f"{shape} numbers between {float(value.min()):.4g} and {float(value.max()):.4g}"


def _table(fit: FitResult, rows: list[SharingRow], known: dict[str, LayerStrength]) -> Grid:
    """Everything about every layer in numbers."""
    sampled = any(sure.r_hat is not None for sure in known.values())
    names = ["ρ", *(["95 % interval"] if known else []), *(["R-hat"] if sampled else []), "γ"]
    lines = []
    for row in rows:
        sure = known.get(row.name)
        cells = [_point(row, sure), *([_interval(sure) or "–"] if known else [])]
        if sampled:
            cells.append("–" if sure is None or sure.r_hat is None else f"{sure.r_hat:.3f}")
        lines.append([row.name, group_of(fit, row.name) or "–", *cells, in_use([row])])
    title = f"Sharing strength ρ{', the median of its posterior,' if known else ''} and effective parameters γ"
    return Grid(title, [("layer", False), ("group", False), *((name, True) for name in names)], lines)


def _training_block(fit: FitResult, start: str) -> Block:
    history, examples = fit.history, max(fit.evidence.examples, 1)
    drawings = []
    if history:
        drawings.append(
            Drawing(
                f"{start}-loss",
                "Training loss",
                "Mean negative log likelihood of the training data, by epoch.",
                lambda: loss_curve(history),
            )
        )
    if any("log_evidence" in record for record in history):
        drawings.append(
            Drawing(
                f"{start}-evidence",
                "What the evidence is made of",
                "−data fit, scatter and Occam factor add up to −log evidence, at every step on the precisions.",
                lambda: evidence_curves(history, examples),
            )
        )
    e = fit.evidence
    words = (
        f"At the end: log evidence {signed(e.log_evidence, 1)} = data fit {signed(e.data_fit, 1)} − scatter "
        f"{signed(e.scatter, 1)} − Occam factor {signed(e.occam, 1)} nats, summed over {e.examples} data."
    )
    return Block("Training", words=[words], drawings=drawings)


def _starts_table(fit: FitResult) -> Grid:
    """What every start has come to, and by what they were compared."""
    by_evidence = fit.starts[0].curvature is not None
    lines = []
    for each in fit.starts:
        score = signed(each.log_evidence, 1) if each.log_evidence is not None else f"{each.held_out_nll:.3f}"
        seconds = "–" if each.seconds is None else f"{each.seconds:.1f}"
        lines.append([str(each.number + 1), each.what, score, seconds, "kept" if each.kept else ""])
    score = "log evidence, nats" if by_evidence else "held-out NLL, nats per datum"
    columns = [("start", True), ("what it is", False), (score, True), ("seconds", True), ("", False)]
    curvature = fit.starts[0].curvature
    caption = "" if curvature is None else f"The evidence that compares them: {curvature.kind!r}, {curvature.bound}."
    return Grid(
        f"Starts: the {'highest evidence' if by_evidence else 'smallest loss'} is kept", columns, lines, caption
    )


def _sentence(row: SharingRow, sure: LayerStrength | None, group: str, chosen: bool) -> str:
    """What a layer shares; `chosen`: whether its pathways could have decided otherwise."""
    over, name = f", over {group}" if group else "", row.name or "the network"
    if not chosen:
        return f"{name} shares {f'by construction{over}' if row.strength > 0 else 'nothing by construction'}."
    rho = row.strength if sure is None else sure.median
    words = next((words for least, words in DEGREES if rho >= least), "shares nothing")
    within = "" if sure is None else f" (95 % interval {_interval(sure)})"
    if sure is not None and sure.interval[1] - sure.interval[0] > UNDETERMINED:
        words = "may share little or much, the data do not tell"
    return f"{name} {words}: ρ = {_point(row, sure)}{within}{over}."


def _point(row: SharingRow, sure: LayerStrength | None) -> str:
    """ρ by its posterior, to the digits of its interval; as fitted where there is no posterior."""
    return of_rho(row.strength) if sure is None else f"{sure.median:.3f}"


def _interval(sure: LayerStrength | None) -> str:
    return "" if sure is None else f"{sure.interval[0]:.3f} to {sure.interval[1]:.3f}"


def _network(fit: FitResult) -> str:
    """Its name and, of one of ours, its arguments; a group by its name."""
    settings = getattr(fit.model, "settings", None)
    plain = {k: getattr(v, "name", v) for k, v in settings.items()} if isinstance(settings, dict) else {}
    return f"{type(fit.model).__name__}{': ' if plain else ''}{as_words(plain)}"
