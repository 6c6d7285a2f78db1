"""Print the tables of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import bayesws as bws

Record = dict[str, Any]
WITHIN = 0.02  # nats per datum
WORTH_A_LINE = 2.0  # nats lost by a choice
PLACE = ("part", "net", "data", "structure", "log_precision")


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run beside its picture: gold and the errors of every curvature, by network and N."""
    about = {name: result[name] for name in ("minutes", "machine")}
    cells = bws.trials.cells_of(map(_kept, result["records"]), PLACE, along="examples")
    cells = [{name: value for name, value in cell.items() if value is not None} for cell in cells]
    wanted = result["config"]["largest_standard_error"]
    return {"command": "python experiments/calibration/run.py", **about, "wanted": wanted, "cells": cells}


def _kept(record: Record) -> Record:
    """Of one cell; errors in nats per datum, gold and its standard error in nats."""
    names = ("examples", "gold", "standard_error", "log_copies", "parameters")
    beyond = record.get("beyond_the_map", {}).get("errors_nats_per_datum")
    return {
        **{name: record.get(name) for name in PLACE},
        **{name: record[name] for name in names},
        "data_fit": record["data_fit"] if record["part"] == "interpolating" else None,
        "sampled": bool(record["sampler"]),
        "notes": len(record["notes"]),
        "starts_at_best": record["map"]["starts_at_best"],
        "error": {name: both["error"] for name, both in record["errors_nats_per_datum"].items()},
        "error_beyond_the_map": beyond,
    }


def error(record: Record, curvature: str, copies: bool) -> float:
    """Nats per datum."""
    value: float = record["error"][curvature]
    return value + record["log_copies"] / record["examples"] * copies


def evidence(record: Record, curvature: str) -> float:
    """Log evidence by a curvature, nats."""
    value: float = record["gold"] + record["error"][curvature] * record["examples"]
    return value


def sampled(records: Iterable[Record]) -> list[Record]:
    """The networks that are not linear, without those of the part on interpolation."""
    return [r for r in records if r["sampled"] and r["part"] != "interpolating"]


def name_of(record: Record) -> str:
    """The network, or the data set and the structure that is fitted to it."""
    return record["net"] if "net" in record else f"{record['data']}: {record['structure']}"


def report(summary: dict[str, Any]) -> str:
    """All tables as Markdown."""
    records = bws.trials.records_in(summary["cells"], along="examples")
    parts = [
        gold_quality(records, summary["wanted"]),
        by_curvature(records),
        by_network(records),
        rankings(records),
        biases(records),
        extreme(records),
    ]
    return "\n\n".join([*parts, f"{summary['minutes']} minutes"])


def gold_quality(records: list[Record], wanted: float) -> str:
    """Whether the gold standard is good enough, and the linear networks exact."""
    linear = [r for r in records if not r["sampled"]]
    exact = max(abs(error(r, "full", False)) for r in linear)
    errors = [(r["standard_error"] / r["examples"], r["standard_error"]) for r in sampled(records)]
    noted = sum(r["notes"] > 0 for r in sampled(records))
    alone = sum(r["starts_at_best"] == 1 for r in sampled(records))
    sizes = [r["parameters"] for r in records]
    counted = []
    for n in sorted({r["examples"] for r in sampled(records)}):
        own = [r for r in sampled(records) if r["examples"] == n]
        within = [sum(abs(error(r, "full", copies)) <= WITHIN for r in own) for copies in (False, True)]
        apart = max(abs(error(r, "full", False) - error(r, "full, 1 sample", False)) for r in own)
        counted.append(
            f"N = {n}: full within {WITHIN} in {within[0]} of {len(own)} networks, with copies in {within[1]}; its one "
            f"sample at most {apart:.3f} from it."
        )
    return "\n".join(
        [
            f"{len(records)} cells, {min(sizes)} to {max(sizes)} parameters.",
            f"Linear networks, {len(linear)} cells: full is within {exact:.1e} nats per datum of the closed form.",
            f"Gold by sampling, {len(errors)} cells: standard error at most {max(e for e, _ in errors):.4f} nats per "
            f"datum (wanted {wanted}), {max(e for _, e in errors):.2f} nats; {noted} with a note.",
            f"MAP: in {alone} of {len(errors)} cells one start alone reached the highest log joint.",
            *counted,
        ]
    )


def by_curvature(records: list[Record]) -> str:
    """Median error and range over all networks, by N."""
    found = sampled(records)
    counts = sorted({r["examples"] for r in found})
    lines = [
        "| curvature | " + " | ".join(f"N = {n}" for n in counts) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for curvature in found[0]["error"]:
        for copies in (False, True) if curvature == "full" else (False,):
            cells = []
            for n in counts:
                errors = [error(r, curvature, copies) for r in found if r["examples"] == n]
                cells.append(f"{median(errors):+.3f} ({min(errors):+.3f} to {max(errors):+.3f})")
            lines.append(f"| {curvature}{' + copies' if copies else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_network(records: list[Record]) -> str:
    """The error of full for every network and N, and from which N on it is small."""
    found = sampled(records)
    counts = sorted({r["examples"] for r in found})
    columns = [f"N = {n}" for n in counts]
    lines = [
        "| network | parameters | log copies | " + " | ".join(columns) + f" | within {WITHIN} from N | + copies |",
        "|---" * (len(counts) + 5) + "|",
    ]
    for name in dict.fromkeys(name_of(r) for r in found):
        own = {r["examples"]: r for r in found if name_of(r) == name}
        first = own[min(own)]
        cells = [
            f"{error(own[n], 'full', False):+.4f} / {error(own[n], 'full', True):+.4f}" for n in counts if n in own
        ]
        starts = []
        for copies in (False, True):
            late = [n for n in own if all(abs(error(own[m], "full", copies)) <= WITHIN for m in own if m >= n)]
            starts.append(str(min(late)) if late else "–")
        about = f"{first['parameters']} | {first['log_copies']:.2f}"
        lines.append(f"| {name} | {about} | " + " | ".join(cells) + f" | {starts[0]} | {starts[1]} |")
    return "\n".join(lines)


def rankings(records: list[Record]) -> str:
    """Kendall's τ of the structures by N, and what the choice by each curvature costs."""
    found = [r for r in records if r["part"] == "ranking"]
    counts = sorted({r["examples"] for r in found})
    head = ["curvature", *(f"τ, N = {n}" for n in counts), "pairs alike", "same best", "largest regret, nats"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for curvature in found[0]["error"]:
        for copies in (False, True) if curvature == "full" else (False,):
            agreements: dict[int, list[Any]] = {n: [] for n in counts}
            for n in counts:
                for data in dict.fromkeys(r["data"] for r in found):
                    own = [r for r in found if r["data"] == data and r["examples"] == n]
                    agreements[n].append(agreement(own, curvature, copies))
            everything = [a for several in agreements.values() for a in several]
            cells = [f"{mean(a.tau for a in agreements[n]):.2f}" for n in counts]
            pairs = f"{sum(a.alike for a in everything)} of {sum(a.pairs for a in everything)}"
            same = f"{sum(a.same_best for a in everything)} of {len(everything)}"
            regret = f"{max(a.regret for a in everything):.1f}"
            name = f"{curvature}{' + copies' if copies else ''}"
            lines.append("| " + " | ".join([name, *cells, pairs, same, regret]) + " |")
    return "\n".join(lines)


def biases(records: list[Record]) -> str:
    """By how many nats a curvature favours "shared" over larger structures, beyond what gold says; wrong choices."""
    found = {(r["data"], r["examples"], r["structure"]): r for r in records if r["part"] == "ranking"}
    cells = sorted(dict.fromkeys((data, n) for data, n, _ in found), key=lambda cell: cell[1])
    lines = [
        "| curvature | nats in favour of sharing | for sharing, wrongly | against it, wrongly | choice not gold's |"
    ]
    lines.append("|---" * 5 + "|")
    for curvature in found[(*cells[0], "shared")]["error"]:
        favours, wrongly = [], {True: 0, False: 0}
        for cell in cells:
            shared = found[(*cell, "shared")]
            for other in (found[(*cell, name)] for name in ("both", "free")):
                said = evidence(shared, curvature) - evidence(other, curvature)
                true = shared["gold"] - other["gold"]
                favours.append(said - true)
                wrongly[said > 0] += said * true < 0
        choices = []
        for data, n in cells:
            own = {name: r for (d, m, name), r in found.items() if (d, m) == (data, n)}
            best = max(own, key=lambda name: float(own[name]["gold"]))
            chosen = max(own, key=lambda name: evidence(own[name], curvature))
            if best != chosen and (lost := own[best]["gold"] - own[chosen]["gold"]) > WORTH_A_LINE:
                choices.append(f"{data}, N = {n}: {chosen} for {best} (-{lost:.1f})")
        middle = f"{median(favours):.1f} ({min(favours):.1f} to {max(favours):.1f})"
        lines.append(
            f"| {curvature} | {middle} | {wrongly[True]} | {wrongly[False]} | {'; '.join(choices) or 'none'} |"
        )
    return "\n".join(lines)


def agreement(records: list[Record], curvature: str, copies: bool) -> Any:
    """How one data set's structures rank by gold and by a curvature."""
    gold = {r["structure"]: r["gold"] for r in records}
    errors = {r["structure"]: r["standard_error"] for r in records}
    more = {r["structure"]: r["log_copies"] if copies else 0.0 for r in records}
    found = {r["structure"]: evidence(r, curvature) + more[r["structure"]] for r in records}
    return bws.analysis.rank_agreement(gold, found, errors)


def extreme(records: list[Record]) -> str:
    """A classifier that interpolates, judged by one prior: at its MAP, and trained on with a weaker prior."""
    found = [r for r in records if r["part"] == "interpolating"]
    head = ["log precision", "gold", "MAP: log p(D given θ*)", "error of full", "+ copies", "error of kron"]
    head += [f"trained on: error of {name}" for name in ("full", "kron")]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in found:
        beyond = r["error_beyond_the_map"]
        cells = [
            f"{r['log_precision']:g}",
            f"{r['gold']:.2f} ± {r['standard_error']:.2f}",
            f"{r['data_fit']:.2f}",
            f"{error(r, 'full', False):+.3f}",
            f"{error(r, 'full', True):+.3f}",
            f"{error(r, 'kron', False):+.3f}",
            f"{beyond['full']:+.3f}",
            f"{beyond['kron']:+.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


SHOWN = {"full": "#0b6e4f", "pathway": "#2a6fbb", "kron": "#d97706", "kron, reduce": "#b91c1c", "diag": "#9aa0a6"}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Absolute error against N, every network a thin line, their median a thick one; then Kendall's τ."""
    records = bws.trials.records_in(summary["cells"], along="examples")
    found = sampled(records)
    counts = sorted({r["examples"] for r in found})
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    for curvature, colour in SHOWN.items():
        for copies in (False, True) if curvature == "full" else (False,):
            style = "--" if copies else "-"
            for name in dict.fromkeys(name_of(r) for r in found) if not copies else ():
                own = [(r["examples"], abs(error(r, curvature, copies))) for r in found if name_of(r) == name]
                left.plot(*zip(*own, strict=True), color=colour, lw=0.5, alpha=0.3)
            middle = [median(abs(error(r, curvature, copies)) for r in found if r["examples"] == n) for n in counts]
            label = f"{curvature}{' + copies' if copies else ''}"
            left.plot(counts, middle, color=colour, ls=style, lw=2.2, marker="o", ms=4, label=label)
    left.axhline(WITHIN, color="black", lw=0.8, ls=":")
    left.text(counts[0], WITHIN * 1.08, f"{WITHIN} nats per datum", fontsize=8)
    left.set(xscale="log", yscale="log", xlabel="examples N", ylabel="|error of log evidence|, nats per datum")
    left.set_xticks(counts, [str(n) for n in counts], minor=False)
    left.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    ranked = [r for r in records if r["part"] == "ranking"]
    names = list(dict.fromkeys(r["data"] for r in ranked))
    at = sorted({r["examples"] for r in ranked})
    for curvature, colour in SHOWN.items():
        taus = [
            mean(
                agreement([r for r in ranked if r["data"] == d and r["examples"] == n], curvature, False).tau
                for d in names
            )
            for n in at
        ]
        right.plot(at, taus, color=colour, lw=2.2, marker="o", ms=4, label=curvature)
    right.set(
        xscale="log", xlabel="examples N", ylabel="Kendall's τ with gold, mean over data sets", ylim=(-0.05, 1.05)
    )
    right.set_xticks(at, [str(n) for n in at], minor=False)
    right.minorticks_off()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    print(report(bws.trials.load_summary(parser.parse_args().file)))


if __name__ == "__main__":
    main()
