"""Print the table of a study's page from its summary.json, in Markdown.

    python experiments/study_tables.py experiments/turned_mnist/large

A study of one task and one number of images has a row a method; one of several has a column for each: accuracy in %
(mean ± standard error over seeds), test NLL in nats per datum. With --special-cases a row for each: accuracy in %, NLL
and log evidence, in nats per datum.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import bayesws as bws

ALONE = ("chooses", "shared alone", "free alone")  # a network, and as the ends of its special cases' names

Trials = list[dict[str, Any]]
Place = tuple[str, int]


def trials_by_cell(folder: Path) -> dict[tuple[Place, str], Trials]:
    """A study's trials by ((task, number of images), method), in the order of its summary."""
    found: dict[tuple[Place, str], Trials] = {}
    for trial in bws.trials.trials_in(bws.trials.load_summary(folder / "summary.json")):
        settings = trial["settings"]
        found.setdefault(((settings["task"], settings["train_size"]), settings["method"]), []).append(trial)
    return found


def over_seeds(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Mean ± standard error, times `scale`."""
    text = f"{mean(values) * scale:.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values) / len(values) ** 0.5 * scale:.{digits}f}"


def stacks(trials: Trials) -> str:
    """Which groups the learned stacks became, most frequent first."""
    if not any(trial["stack_parameters"] for trial in trials):
        return ""
    counts = Counter(_names(trial) for trial in trials)
    return "; ".join(f"{count} × {names}" for names, count in counts.most_common())


def _names(trial: dict[str, Any]) -> str:
    names = [group["name"] or "no group" for group in trial["groups"].values()]
    if not names:
        return "not doubly stochastic"
    return f"{names[0]} in all {len(names)}" if len(set(names)) == 1 else ", ".join(names)


def one_place(cells: dict[tuple[Place, str], Trials]) -> list[list[str]]:
    """A row a method."""
    rows = [["method", "seeds", "accuracy %", "NLL", "weights", "s a fit", "the layers' stacks"]]
    for (_, method), trials in cells.items():
        scores = [over_seeds([t["accuracy"] for t in trials], 2, 100), over_seeds([t["nll"] for t in trials], 3)]
        size = [str(trials[0]["parameters"]), f"{median(t['seconds'] for t in trials):.0f}"]
        rows.append([method, str(len(trials)), *scores, *size, stacks(trials)])
    return rows


def several_places(cells: dict[tuple[Place, str], Trials], evidence: bool) -> list[list[str]]:
    """A row a method, a column a place; with the evidence in nats per datum beside it, where asked for."""
    places = list(dict.fromkeys(place for place, _ in cells))
    by_size = len({task for task, _ in places}) == 1
    names = [f"{size} images" if by_size else task for task, size in places]
    heads = [head for name in names for head in ([name, "evidence"] if evidence else [name])]
    rows = [["method", "weights", *heads]]
    for method in dict.fromkeys(method for _, method in cells):
        row = [method, str(next(t for (_, m), t in cells.items() if m == method)[0]["parameters"])]
        for place in places:
            trials = cells.get((place, method))
            if trials is None:
                row += ["–"] * (1 + evidence)
                continue
            row.append(f"{over_seeds([100 * t['accuracy'] for t in trials], 2)}, {mean(t['nll'] for t in trials):.3f}")
            if evidence:
                row.append(f"{mean(t['log_evidence'] for t in trials) / place[1]:.3f}")
        rows.append(row)
    return rows


def special_cases(cells: dict[tuple[Place, str], Trials]) -> list[list[str]]:
    """A row a place: a network that chooses, its special cases, and it less the better of these.

    That is the better one in the mean over seeds, by evidence and by test NLL; all have the same seeds.
    """
    rows = [["images", *ALONE, "its ρ by layer", "evidence less the better's (by seed)", "NLL less the better's"]]
    methods = list(dict.fromkeys(method for _, method in cells))
    whole = next(m for m in methods if m.startswith("evidence") and not m.endswith(ALONE[1:]))
    alone = [next(m for m in methods if m.endswith(end)) for end in ALONE[1:]]
    for place in dict.fromkeys(place for place, _ in cells):
        own, *others = (sorted(cells[place, method], key=lambda t: t["seed"]) for method in (whole, *alone))
        by_evidence = max(others, key=lambda trials: mean(t["log_evidence"] for t in trials))
        by_nll = min(others, key=lambda trials: mean(t["nll"] for t in trials))
        pairs = list(zip(own, by_evidence, strict=True))
        evidence = [(t["log_evidence"] - other["log_evidence"]) / place[1] for t, other in pairs]
        nll = [t["nll"] - other["nll"] for t, other in zip(own, by_nll, strict=True)]
        shown = [
            f"{over_seeds([t['accuracy'] for t in trials], 2, 100)}, {mean(t['nll'] for t in trials):.3f}, "
            f"{mean(t['log_evidence'] for t in trials) / place[1]:.4f}"
            for trials in (own, *others)
        ]
        by_layer = zip(*([row["strength"] for row in trial["sharing"]] for trial in own), strict=True)
        strengths = ", ".join(f"{mean(found):.2f}" for found in by_layer)
        by_seed = f"{over_seeds(evidence, 4)} ({min(evidence):.4f} to {max(evidence):.4f})"
        rows.append([place[0], *shown, strengths, by_seed, over_seeds(nll, 3)])
    return rows


def chosen(cells: dict[tuple[Place, str], Trials]) -> list[list[str]]:
    """A row for every method that chose a weight decay: how often which, by place."""
    rows = [["method", "images", "its weight decays"]]
    for (place, method), trials in cells.items():
        if all(trial["objective"] != "evidence" for trial in trials):
            counts = Counter(trial["weight_decay"] for trial in trials)
            rows.append(
                [method, place[0], ", ".join(f"{count} × {decay:g}" for decay, count in sorted(counts.items()))]
            )
    return rows


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with a study's summary.json")
    parser.add_argument("--evidence", action="store_true", help="a column with the log evidence, nats per datum")
    parser.add_argument("--special-cases", action="store_true", help="a network that chooses beside what it contains")
    parser.add_argument("--chosen", action="store_true", help="which weight decays were chosen")
    options = parser.parse_args()
    try:
        cells = trials_by_cell(options.folder)
    except (ValueError, KeyError) as error:
        print(f"study_tables: error: {error}; expected the folder of a study's summary", file=sys.stderr)
        return 2
    alone = len({place for place, _ in cells}) == 1 and not options.evidence
    if options.special_cases:
        rows = special_cases(cells)
    elif options.chosen:
        rows = chosen(cells)
    else:
        rows = one_place(cells) if alone else several_places(cells, options.evidence)
    rows.insert(1, ["---"] * len(rows[0]))
    for row in rows:
        print(f"| {' | '.join(row)} |".replace("|  |", "| |"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
