"""Print the tables of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
import math
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binomtest

import bayesws as bws

Records = list[dict[str, Any]]
PLACE = ("part", "strength", "outputs", "examples")
KEPT = (*PLACE, "seed", "low", "high")
DIGITS = 5


def summary_of(finished: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of finished blocks: every interval, and how many were integrated on a grid."""
    records = [record for block in finished for record in block["records"]]
    runs = [{name: r[name] for name in KEPT} for r in records]
    return {
        "command": "python experiments/coverage/run.py",
        "config": finished[0]["config"],
        "minutes": round(sum(block["minutes"] for block in finished), 1),
        "by_quadrature": sum(r["method"] == "quadrature" for r in records),
        "cells": bws.trials.cells_of(runs, PLACE, digits=DIGITS),
    }


def spread(record: dict[str, Any]) -> float:
    """The width of an interval on the scale of Fisher's z = atanh ρ, on which it does not depend on ρ."""
    return math.atanh(record["high"]) - math.atanh(record["low"])


def coverage(records: Records) -> list[str]:
    """How often the interval holds the truth, by strength."""
    lines = ["| ρ | covered | of | % | 95 % of the coverage itself | median width |", "|---" * 6 + "|"]
    for strength in dict.fromkeys(r["strength"] for r in records if r["part"] == "coverage"):
        mine = [r for r in records if (r["part"], r["strength"]) == ("coverage", strength)]
        hits = sum(r["low"] <= strength <= r["high"] for r in mine)
        exact = binomtest(hits, len(mine)).proportion_ci(0.95)
        share = f"{100 * hits / len(mine):.1f} | {100 * exact.low:.1f} to {100 * exact.high:.1f}"
        lines.append(
            f"| {strength} | {hits} | {len(mine)} | {share} | {median(r['high'] - r['low'] for r in mine):.3f} |"
        )
    return lines


def widths(records: Records, part: str) -> list[str]:
    """Median width in Fisher's z, and times the root of the number of `part`."""
    lines = [f"| {part} | width | × √ |", "|---|---|---|"]
    mine = [r for r in records if r["part"] == part]
    for count in dict.fromkeys(r[part] for r in mine):
        width = median(spread(r) for r in mine if r[part] == count)
        lines.append(f"| {count} | {width:.3f} | {width * count**0.5:.2f} |")
    return lines


def report(summary: dict[str, Any]) -> str:
    """All tables."""
    records = bws.trials.records_in(summary["cells"])
    tables = [coverage(records), *(widths(records, part) for part in ("outputs", "examples"))]
    last = f"{summary['by_quadrature']} of {len(records)} by quadrature; {summary['minutes']:.0f} minutes"
    return "\n\n".join(["\n".join(table) for table in tables] + [last])


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    print(report(bws.trials.load_summary(parser.parse_args().file)))


if __name__ == "__main__":
    main()
