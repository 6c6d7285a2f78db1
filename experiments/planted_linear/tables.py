"""Print the table of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
from pathlib import Path
from statistics import mean, median
from typing import Any

import bayesws as bws

METHODS = {
    "evidence": "evidence",
    "task": "task loss",
    "task_burn_in": "task loss, stack at rest in the burn-in",
    "task_entropy_burn_in": "task loss + entropy, stack at rest in the burn-in",
}
LEFT_OUT = {"last_note", "seconds", "noise", "found_share"}  # of every run


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run beside its figure: every fit by N, method and seed."""
    runs = [{name: value for name, value in run.items() if name not in LEFT_OUT} for run in result["runs"]]
    kept = {name: value for name, value in result.items() if name not in ("runs", "summary", "workers")}
    return {"command": "python experiments/planted_linear/run.py", **kept} | {
        "cells": bws.trials.cells_of(runs, ("examples", "method"))
    }


def rows_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per N and method: shares and medians over the seeds."""
    rows = []
    for examples in sorted({r["examples"] for r in runs}):
        for method in METHODS:
            mine = [r for r in runs if r["examples"] == examples and r["method"] == method]
            rows.append(
                {
                    "examples": examples,
                    "method": method,
                    "runs": len(mine),
                    "recovery": mean(float(r["found_all"]) for r in mine),
                    "recovery_up_to_relabelling": mean(float(r["found_up_to_relabelling"]) for r in mine),
                    "median_held_out_squared_error": median(r["held_out_squared_error"] for r in mine),
                    "median_row_entropy_nats": median(r["row_entropy_nats"] for r in mine),
                }
            )
    return rows


def main() -> None:
    """Runs with all permutations found, %; in brackets the median squared error on held-out values without noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    rows = rows_of(bws.trials.records_in(bws.trials.load_summary(parser.parse_args().file)["cells"]))
    print("| N | evidence | task loss | task loss, burn-in | task loss + entropy, burn-in |\n|---|---|---|---|---|")
    for examples in dict.fromkeys(row["examples"] for row in rows):
        mine = [row for row in rows if row["examples"] == examples]
        cells = [f"{100 * row['recovery']:.0f} ({row['median_held_out_squared_error']:.3f})" for row in mine]
        print(f"| {examples} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
