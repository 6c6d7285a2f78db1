"""Print the table of the page beside this file from the summaries of the five sets, in Markdown."""

import argparse
from pathlib import Path
from statistics import mean, median
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


def main() -> None:
    """A row for every set and method; the difference is the evidence's NLL less the method's, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="with a folder a set")
    folder = parser.parse_args().folder
    print("| upright images | method | accuracy % | NLL | evidence's less this | lower in | s a fit |")
    print("|---" * 7 + "|")
    for name, title in SETS.items():
        if not (folder / name / "summary.json").is_file():
            continue
        trials = by_method(folder / name)
        ours = trials["evidence"]
        for method, found in trials.items():
            scores = [told([100 * t["accuracy"] for t in found], 1), told([t["nll"] for t in found], 3)]
            apart = ["", ""]
            if method != "evidence":
                less = [own["nll"] - other["nll"] for own, other in zip(ours, found, strict=True)]
                apart = [told(less, 3), f"{sum(value < 0 for value in less)} of {len(less)}"]
            else:
                scores[1] += f" (log evidence {mean(t['log_evidence'] for t in found) / _size(found):.3f} a datum)"
            cells = [title, method, *scores, *apart, f"{median(t['seconds'] for t in found):.0f}"]
            print(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))


def _size(trials: list[dict[str, Any]]) -> int:
    return int(trials[0]["settings"]["train_size"])


if __name__ == "__main__":
    main()
