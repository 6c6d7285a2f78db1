"""Print the tables of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
from pathlib import Path
from statistics import mean, median
from typing import Any

import bayesws as bws

Runs = list[dict[str, Any]]

METHODS = {
    "evidence": "evidence",
    "task": "task loss + entropy, as published",
    "task_rested": "task loss + entropy, stack at rest in the burn-in",
}
SHORT = {"evidence": "evidence", "task": "as published", "task_rested": "rested"}
TITLES = {
    "shifts": "line of 8, 8 shifts",
    "ring": "3 × 3 patch, C8",
    "voxels": "2 × 2 × 2 voxels, 24 turns",
    "half_of_shifts": "line of 8, 4 of 8 copies shifted",
    "c4_in_voxels": "2 × 2 × 2 voxels, 4 of 24 copies turned",
}
KEPT = ("toy", "examples", "method", "seed", "found_all", "held_out_squared_error", "structure_rate")
OF_PARTIAL_GROUPS = ("claims_right", "separated", "sharing_of_planted", "sharing_of_others")
DIGITS = 4


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run beside its figure: every fit by toy, N, method and seed; yes and no as 1 and 0."""
    runs = []
    for run in result["runs"]:
        partial = run["sharing_of_others"] is not None
        kept = {name: run.get(name) for name in (*KEPT, *(OF_PARTIAL_GROUPS if partial else ()))}
        runs.append({name: int(value) if isinstance(value, bool) else value for name, value in kept.items()})
    about = {name: value for name, value in result.items() if name not in ("runs", "summary", "workers")}
    cells = bws.trials.cells_of(runs, ("toy", "examples", "method"), digits=DIGITS)
    return {"command": "python experiments/planted_groups/run.py", **about, "cells": cells}


def rows_of(runs: Runs) -> Runs:
    """One row per toy, N and method: shares and medians over the seeds."""
    cells = sorted({(r["toy"], r["examples"]) for r in runs}, key=lambda cell: (list(TITLES).index(cell[0]), cell))
    return [
        row_of([r for r in runs if (r["toy"], r["examples"], r["method"]) == (*c, m)]) for c in cells for m in METHODS
    ]


def row_of(runs: Runs) -> dict[str, Any]:
    """Of the runs of one toy, N and method."""
    row = {
        **{name: runs[0][name] for name in ("toy", "examples", "method")},
        "recovery": mean(float(r["found_all"]) for r in runs),
        "median_held_out_squared_error": median(r["held_out_squared_error"] for r in runs),
    }
    if runs[0].get("sharing_of_others") is not None:  # a part of a group is planted
        row["claims_right"] = mean(float(r["claims_right"]) for r in runs)
        row["told_apart"] = mean(float(r["found_all"] and r["separated"]) for r in runs)
        for name in ("sharing_of_planted", "sharing_of_others"):
            row[name] = median(r[name] for r in runs)
    return row


def tables(rows: Runs) -> list[str]:
    """Recovery of everything planted; then, of partial groups, what is claimed beside it."""
    cells = list(dict.fromkeys((row["toy"], row["examples"]) for row in rows))
    lines = ["| toy | N | evidence | as published | rested |", "|---|---|---|---|---|"]
    for toy, examples in cells:
        mine = [row for row in rows if (row["toy"], row["examples"]) == (toy, examples)]
        shown = [f"{100 * row['recovery']:.0f} ({row['median_held_out_squared_error']:.2f})" for row in mine]
        lines.append(f"| {TITLES[toy]} | {examples} | {' | '.join(shown)} |")
    lines += ["", "| toy | N | method | all found | told apart | claims right |", "|---|---|---|---|---|---|"]
    for row in rows:
        if "told_apart" not in row:
            continue
        found, apart, right = (f"{100 * row[name]:.0f}" for name in ("recovery", "told_apart", "claims_right"))
        medians = f"({row['sharing_of_planted']:.2f}, {row['sharing_of_others']:.2f})"
        place = f"{TITLES[row['toy']]} | {row['examples']} | {SHORT[row['method']]}"
        lines.append(f"| {place} | {found} | {apart} | {right} {medians} |")
    return lines


def claims(runs: Runs) -> list[str]:
    """What the page says of single runs."""
    by = {(r["toy"], r["examples"], r["method"], r["seed"]): r for r in runs}
    lines = ["", "problems solved by the evidence alone : by the other alone"]
    for toy, n in sorted({(r["toy"], r["examples"]) for r in runs}):
        for other in ("task", "task_rested"):
            mine, theirs = (
                {s: r["found_all"] for (t, m, method, s), r in by.items() if (t, m, method) == (toy, n, who)}
                for who in ("evidence", other)
            )
            wins = [sum(mine[s] > theirs[s] for s in mine), sum(mine[s] < theirs[s] for s in mine)]
            lines.append(f"{TITLES[toy]}, N = {n}, against {SHORT[other]}: {wins[0]} : {wins[1]}")
    worse = sum(
        r["held_out_squared_error"] >= min(by[t, n, o, s]["held_out_squared_error"] for o in ("task", "task_rested"))
        for (t, n, method, s), r in by.items()
        if method == "evidence"
    )
    lines.append(f"problems in which a task loss has the smaller held-out error: {worse}")
    late = [r for r in runs if r["method"] == "evidence" and r["examples"] >= 16 and r.get("sharing_of_others")]
    if late:
        largest = max(r["sharing_of_others"] for r in late)
        lines.append(f"largest mean s_g of copies that do not share, evidence, from N = 16 on: {largest:.2f}")
    slow = [r["structure_rate"] == 0.02 for r in runs if r["method"] == "task"]
    lines.append(f"slow logits chosen, as published: {sum(slow)} of {len(slow)}")
    return lines


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    runs = bws.trials.records_in(bws.trials.load_summary(parser.parse_args().file)["cells"])
    print("\n".join([*tables(rows_of(runs)), *claims(runs)]))


if __name__ == "__main__":
    main()
