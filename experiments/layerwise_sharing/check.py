"""Hold a finished comparison against what was predicted; the command is in the README beside this file."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bayesws as bws


def sharing_layers(trial: bws.trials.Trial) -> list[Any]:
    """The rows of the layers that have copies to share: not that of the plain head."""
    return [row for row in trial.sharing if not math.isnan(row.strength)]


def last_free_exceeds_shared(trial: bws.trials.Trial) -> bool:
    """Upright digits: the last layer's free pathway holds more effective parameters than its shared one."""
    effective = sharing_layers(trial)[-1].effective
    return effective["free"] > effective["shared"]


def shares_everywhere(trial: bws.trials.Trial) -> bool:
    """Turned digits: every layer has ρ > 0.95 and uses less than 1 % of its free weights."""
    layers = sharing_layers(trial)
    return all(row.strength > 0.95 and row.effective["free"] < 0.01 * row.parameters["free"] for row in layers)


def shares_first_only(trial: bws.trials.Trial) -> bool:
    """Orientation: the first layer has ρ > 0.9, the last ρ < 0.1."""
    layers = sharing_layers(trial)
    return layers[0].strength > 0.9 and layers[-1].strength < 0.1


PICTURE: dict[str, Callable[[bws.trials.Trial], bool]] = {
    "turned": shares_everywhere,
    "orientation": shares_first_only,
    "upright": last_free_exceeds_shared,
}


def check(comparison: bws.trials.Comparison) -> None:
    """Print, for every task, in how many seeds the picture came out, and whether choosing cost anything."""
    cells = comparison.cells()
    for task, holds in PICTURE.items():
        for objective in ("evidence", "task"):
            trials = cells[task, "both", objective]
            print(f"{task:11} {objective:8} picture in {sum(map(holds, trials))} of {len(trials)} seeds")
    for task in PICTURE:
        both, plain = cells[task, "both", "evidence"], cells[task, "both", "task"]
        accuracy = {s: mean(t.accuracy for t in cells[task, s, "evidence"]) for s in ("both", "shared", "free")}
        best = max(accuracy["shared"], accuracy["free"])
        gains = [c.accuracy - p.accuracy for c, p in zip(both, plain, strict=True)]
        error = stdev(gains) / math.sqrt(len(gains))
        nll = [mean(t.nll for t in trials) for trials in (both, plain)]
        fixed = f"accuracy {100 * accuracy['both']:.1f} %, better fixed structure {100 * best:.1f} %"
        paired = f"evidence - task loss {100 * mean(gains):+.2f} ± {100 * error:.2f} points"
        print(f"{task:11} {fixed}; {paired}; test NLL {nll[0]:.3f} against {nll[1]:.3f} nats")


def main() -> int:
    """Read one summary.json, or a comparison.json, and print the check."""
    parser = argparse.ArgumentParser(description="Hold a comparison against the predictions of this experiment.")
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("summary.json"))
    try:
        check(bws.trials.Comparison.load(parser.parse_args().file))
    except (ValueError, KeyError) as error:
        print(f"check: error: {error}; needs all tasks and --pathways all", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
