"""Print the tables of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bayesws as bws

Records = list[dict[str, Any]]


def summary_of(records: Records, config: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run: all of it, by task and seed."""
    return {
        "command": "python experiments/scaled_logits/run.py",
        "config": config,
        "cells": bws.trials.cells_of(records, ("task",), digits=5),
    }


def by_task(records: Records) -> list[str]:
    """Test NLL by task, mean ± standard error over seeds."""
    columns = ("map", "scaled", "at_best_scale", "hindsight", "posterior")
    names = ("as it is", "scaled", "at the best left-out scale", "at the best scale in hindsight", "posterior")
    lines = [f"| test NLL | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for task in dict.fromkeys(r["task"] for r in records):
        mine = [r for r in records if r["task"] == task]
        cells = [_spread([r[name] for r in mine]) for name in columns]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


def by_fit(records: Records) -> list[str]:
    """Every fit: its scales, and what the scale changes on test data, with the paired standard error."""
    lines = [
        "| task | seed | best left-out scale | scale | in hindsight | left-out NLL | test NLL | scaled less as it is |",
        "|---" * 8 + "|",
    ]
    for r in records:
        change = f"{r['difference']:+.4f} ± {r['standard_error']:.4f}"
        scales = f"{r['best_scale']:.2f} | {r['scale']:.2f} | {r['hindsight_scale']:.2f}"
        lines.append(f"| {r['task']} | {r['seed']} | {scales} | {r['left_out_nll']:.4f} | {r['map']:.4f} | {change} |")
    return lines


def regression(records: Records) -> list[str]:
    """Test NLL of both densities by number of examples and curvature, and how often their 95 % intervals hold y."""
    lines = [
        "| examples | curvature | NLL, MAP | NLL, posterior | difference | lower in | MAP covers | posterior covers |",
        "|---" * 8 + "|",
    ]
    for place in dict.fromkeys((r["examples"], r["curvature"]) for r in records):
        mine = [r for r in records if (r["examples"], r["curvature"]) == place]
        less = [r["posterior"] - r["map"] for r in mine]
        nlls = f"{_spread([r['map'] for r in mine])} | {_spread([r['posterior'] for r in mine])} | {_spread(less)}"
        wins = f"{sum(value < 0 for value in less)} of {len(less)}"
        covers = [f"{100 * mean(r[name] for r in mine):.1f} %" for name in ("map_covers", "posterior_covers")]
        lines.append(f"| {place[0]} | {place[1]} | {nlls} | {wins} | {' | '.join(covers)} |")
    return lines


def report(summary: dict[str, Any]) -> str:
    """Both tables, and how long it took."""
    records = bws.trials.records_in(summary["cells"])
    seconds = [mean(r[name] for r in records) for name in ("fit_seconds", "scale_seconds")]
    last = f"seconds: {seconds[0]:.0f} a fit, {seconds[1]:.0f} its left-out logits"
    return "\n\n".join(["\n".join(by_task(records)), "\n".join(by_fit(records)), last])


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values) / len(values) ** 0.5:.4f}"


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().folder
    print(report(bws.trials.load_summary(folder / "summary.json")))
    cells = bws.trials.load_summary(folder / "regression" / "summary.json")["cells"]
    print("\n" + "\n".join(regression(bws.trials.records_in(cells))))


if __name__ == "__main__":
    main()
