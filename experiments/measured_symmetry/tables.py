"""Print the tables of the page beside this file from summary.json, in Markdown; and say what a summary keeps."""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bayesws as bws

Records = list[dict[str, Any]]
MOTIONS = {"quarter-turn": "quarter turn", "half-turn": "half turn", "flip": "left-right flip"}
RANDOM = "ResNet-18, random weights"
SHORT = {
    "p4 network, turned digits": "p4, turned digits",
    "plain CNN, turned digits": "plain, turned digits",
    "plain CNN, flipped digits": "plain, flipped digits",
    "plain CNN, upright digits": "plain, upright digits",
    RANDOM: "ResNet-18, random",
}


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run: every layer's error, and ρ of the small networks' layers; of the ResNet the largest ρ."""
    errors = {
        network: {
            motion: {layer: _rounded([row["error"], *row["interval"]]) for layer, row in rows.items()}
            for motion, rows in found["errors"].items()
        }
        for network, found in result.items()
        if network != "explained"
    }
    small, large = [], []
    for seed, networks in result["explained"].items():
        for network, motions in networks.items():
            for motion, layers in motions.items():
                place = {"network": network, "motion": motion, "seed": int(seed)}
                if network == RANDOM:
                    best = max(layers.values(), key=lambda row: row["nats"])
                    shared = sum(row["shares"] for row in layers.values())
                    largest = max(row["rho"] for row in layers.values())
                    about = {"layers": len(layers), "shared": shared, "largest_rho": largest}
                    large.append(place | about | {"rho": best["rho"], "nats": best["nats"]})
                    continue
                for layer, row in layers.items():
                    numbers = {name: row[name] for name in ("rho", "chance", "nats")}
                    small.append(place | {"layer": layer} | numbers)
    return {
        "command": "python experiments/measured_symmetry/run.py",
        "accuracy": {network: round(found["accuracy"], 4) for network, found in result.items() if network in errors},
        "errors": errors,
        "cells": bws.trials.cells_of(small, ("network", "layer", "motion")),
        "resnet": bws.trials.cells_of(large, ("network", "motion")),
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]


def of_errors(errors: dict[str, Any]) -> list[str]:
    """Error of the features before the outputs (of the ResNet: of the first layer) and of the outputs."""
    lines = [f"| network | layer | {' | '.join(MOTIONS.values())} |", "|---" * 5 + "|"]
    for network, found in errors.items():
        layers = list(found["flip"])
        name, place = ("first", layers[0]) if network == RANDOM else ("second", layers[1])
        for title, layer in ((name, place), ("outputs", layers[-1])):
            cells = [_with_interval(*found[motion][layer]) for motion in MOTIONS]
            lines.append(f"| {SHORT[network] + ' ' if title == name else ''}| {title} | {' | '.join(cells)} |")
    return lines


def _with_interval(error: float, low: float, high: float) -> str:
    ends = [f"{end:.2f}".removeprefix("0") for end in (low, high)]
    return f"{error:.2f}" + (f" ({ends[0]}–{ends[1]})" if ends[0] != ends[1] else "")


def of_weights(records: Records, resnet: Records) -> list[str]:
    """ρ of the second layer, mean ± standard error over seeds; in brackets the largest chance level of the seeds."""
    lines = [f"| network | {' | '.join(MOTIONS.values())} |", "|---" * 4 + "|"]
    for network in SHORT:
        mine = [r for r in records if r["network"] == network]
        if not mine:
            continue
        second = list(dict.fromkeys(r["layer"] for r in mine))[1]
        rows = {motion: [r for r in mine if (r["layer"], r["motion"]) == (second, motion)] for motion in MOTIONS}
        best = max(rows, key=lambda motion: mean(r["nats"] for r in rows[motion]))
        cells = []
        for motion, found in rows.items():
            values = [r["rho"] for r in found]
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            text = f"{mean(values):.2f} ± {error:.2f}"
            text = f"**{text}**" if motion == best else text
            chance = f"{max(r['chance'] for r in found):.2f}".removeprefix("0")
            cells.append(f"{text} ({chance})")
        lines.append(f"| {SHORT[network]} | {' | '.join(cells)} |")
    largest = [max(r["largest_rho"] for r in resnet if r["motion"] == motion) for motion in MOTIONS]
    lines.append(f"| {SHORT[RANDOM]}, all layers | {' | '.join(f'at most {value:.2f}' for value in largest)} |")
    return lines


def claims(records: Records, resnet: Records) -> list[str]:
    """What the page says of single networks."""
    lines = []
    for network in SHORT:
        mine = [r for r in records if r["network"] == network]
        for motion in MOTIONS if mine else ():
            second = list(dict.fromkeys(r["layer"] for r in mine))[1]
            nats = [r["nats"] for r in mine if (r["layer"], r["motion"]) == (second, motion)]
            lines.append(f"{SHORT[network]}, {MOTIONS[motion]}: {min(nats):.0f} to {max(nats):.0f} nats")
    shared = [r for r in resnet if r["shared"]]
    told = "; ".join(f"ρ {r['rho']:.3f}, {r['nats']:.1f} nats" for r in shared)
    lines.append(f"ResNet-18: {len(shared)} of {sum(r['layers'] for r in resnet)} called shared: {told}")
    return lines


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    summary = bws.trials.load_summary(parser.parse_args().file)
    records, resnet = (bws.trials.records_in(summary[name]) for name in ("cells", "resnet"))
    tables = [of_errors(summary["errors"]), of_weights(records, resnet), claims(records, resnet)]
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    main()
