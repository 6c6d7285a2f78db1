"""Print the tables of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import bayesws as bws

Records = list[dict[str, Any]]
PLACE = ("images", "side", "task", "planted")


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run beside its figure: what every data set was called, by its misfits; and the rankings.

    The misfits are the largest of a planted motion, and the smallest of any other permutation.
    """
    named = []
    for record in (*result["candidates"], *result["fewer"]):
        misfits = list(zip(record["misfits"], record["is_planted"], strict=True))
        kept = {name: record[name] for name in (*PLACE, "seed", "named", "p_value")}
        named.append(
            kept
            | {
                "misfit_of_planted": max(misfit for misfit, planted in misfits if planted),
                "misfit_of_others": min(misfit for misfit, planted in misfits if not planted),
            }
        )
    about = {name: result[name] for name in ("config", "minutes")}
    about["slowest_seconds"] = round(max(r["seconds"] for r in result["candidates"]), 1)
    drawn = {r["task"]: [float(f"{m:.4g}") for m in r["misfits"]] for r in result["candidates"] if r["seed"] == 0}
    ranked = [row | {"log_evidence": round(row["log_evidence"], 2)} for row in result.get("select", [])]
    return {
        "command": "python experiments/symmetry_identification/run.py",
        **about,
        "misfits_of_seed_0": drawn,
        "cells": bws.trials.cells_of(named, PLACE, digits=4),
        "select": [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in ranked],
    }


def of_moments(records: Records) -> list[str]:
    """Named by the moments of 10 000 images."""
    heads = ("images", "planted", "named rightly", "misfits of the planted motions")
    lines = [f"| {' | '.join(heads)} | smallest misfit of any other permutation |", "|---|---|---|---|---|"]
    most = max(r["images"] for r in records)
    for task in dict.fromkeys(r["task"] for r in records):
        mine = [r for r in records if (r["task"], r["images"]) == (task, most)]
        right = sum(r["named"] == r["planted"] for r in mine)
        misfits = [max(r["misfit_of_planted"] for r in mine), min(r["misfit_of_others"] for r in mine)]
        lines.append(
            f"| {task} | {mine[0]['planted']} | {right} of {len(mine)} | ≤ {misfits[0]:.4f} | {misfits[1]:.4f} |"
        )
    return lines


def with_fewer(records: Records) -> list[str]:
    """The same for every number of images and side, all tasks together."""
    lines = []
    for images, side in dict.fromkeys((r["images"], r["side"]) for r in records):
        mine = [r for r in records if (r["images"], r["side"]) == (images, side)]
        right = sum(r["named"] == r["planted"] for r in mine)
        wrong = Counter(f"{r['task']} called {r['named']}" for r in mine if r["named"] != r["planted"]).most_common()
        told = "".join(f"; {count} × {name}" for name, count in wrong)
        lines.append(f"{images} images of {side}×{side}: {right} of {len(mine)} named rightly{told}")
    return lines


def rankings(rows: Records) -> list[str]:
    """By the evidence of trained networks, nats; test NLL in nats per datum; the planted group in bold."""
    groups = list(dict.fromkeys(row["group"] for row in sorted(rows, key=lambda row: -row["parameters"])))
    names = ["no sharing" if group == "trivial" else group for group in groups]
    lines = [f"| images | {' | '.join(names)} | lead of the first |", "|---" * (len(groups) + 2) + "|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = {row["group"]: row for row in rows if row["task"] == task}
        cells = [f"{mine[g]['log_evidence']:.0f} ({mine[g]['nll']:.2f})" for g in groups]
        planted = next(iter(mine.values()))["planted"]
        cells = [f"**{text}**" if g == planted else text for g, text in zip(groups, cells, strict=True)]
        best, second, *_ = sorted((row["log_evidence"] for row in mine.values()), reverse=True)
        lines.append(f"| {task} | {' | '.join(cells)} | {best - second:.0f} |")
    return lines


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    summary = bws.trials.load_summary(parser.parse_args().file)
    records = bws.trials.records_in(summary["cells"])
    tables = [of_moments(records), with_fewer(records), *([rankings(summary["select"])] if summary["select"] else [])]
    print("\n\n".join("\n".join(table) for table in tables))
    print(f"\nslowest call {summary['slowest_seconds']} s; {summary['minutes']} minutes")


if __name__ == "__main__":
    main()
