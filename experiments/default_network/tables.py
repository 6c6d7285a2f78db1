"""Print the table of the page beside this file from the summaries of its five sets, in Markdown."""

import argparse
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import bayesws as bws

SETS = {
    "digits_1000": "1000 digits",
    "mnist_1000": "1000 MNIST",
    "mnist_10000": "10 000 MNIST",
    "cifar_1000": "1000 photographs",
    "cifar_10000": "10 000 photographs",
}


def by_method(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A study's trials by method, in the order of their seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for trial in bws.trials.trials_in(bws.trials.load_summary(folder / "summary.json")):
        found.setdefault(trial["settings"]["method"], []).append(trial)
    return {method: sorted(trials, key=lambda trial: trial["seed"]) for method, trials in found.items()}


def told(values: list[float], digits: int) -> str:
    """Mean ± standard error over seeds."""
    return bws.trials.Summary.of(values).show(digits)


def scores(trials: list[dict[str, Any]]) -> str:
    """Accuracy in % and NLL in nats per datum, over seeds."""
    return f"{told([100 * t['accuracy'] for t in trials], 1)}, {told([t['nll'] for t in trials], 3)}"


def strengths(trials: list[dict[str, Any]]) -> str:
    """ρ of every layer, from the input up, mean over seeds."""
    by_layer = zip(*([row["strength"] for row in trial["sharing"]] for trial in trials), strict=True)
    return ", ".join(f"{mean(found):.2f}" for found in by_layer)


def decay_of(trial: dict[str, Any]) -> float:
    """The weight decay that a trial chose."""
    return float(trial["weight_decay"])


def main() -> None:
    """A row for every set and rival; the difference is the evidence's NLL less the rival's, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="with a folder a set")
    folder = parser.parse_args().folder
    print("| upright images | evidence | ρ by layer | batch norm | its weight decays | less batch norm's | lower in |")
    print("|---" * 7 + "|")
    for name, title in SETS.items():
        trials = by_method(folder / name)
        ours = {method: trials.pop(method) for method in list(trials) if method.startswith("evidence")}
        for (method, own), (rival, found) in product(ours.items(), trials.items()):
            less = [mine["nll"] - other["nll"] for mine, other in zip(own, found, strict=True)]
            lower = f"{sum(value < 0 for value in less)} of {len(less)}"
            row = title + method.removeprefix("evidence") + rival.removeprefix("batch norm")
            less_than = told(less, 3)
            decays = ", ".join(f"{count} × {decay:g}" for decay, count in Counter(map(decay_of, found)).most_common())
            print(f"| {row} | {scores(own)} | {strengths(own)} | {scores(found)} | {decays} | {less_than} | {lower} |")


if __name__ == "__main__":
    main()
