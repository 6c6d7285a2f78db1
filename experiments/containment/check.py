"""Print, from the summary.json beside this file, in how many seeds the layer-wise picture is the predicted one."""

from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bayesws as bws

SHARES, FREE = 0.9, 0.1  # a strength above, and one below
TIED, METHOD = "biases and head tied", "containing, started shared"
PICTURES = {
    "turned": {"lift": True, "group_convs.0": True, "head": True},
    "orientation": {"lift": True, "group_convs.0": True, "head": False},
    "upright": {"lift": True, "group_convs.0": True, "head": False},
}


def as_predicted(strengths: dict[str, float], picture: dict[str, bool]) -> bool:
    """Whether every layer shares, or is free, as the picture says."""
    return all(strengths[name] > SHARES if shares else strengths[name] < FREE for name, shares in picture.items())


def main() -> None:
    """Two lines a task: the picture, and whether the evidence tells which of two networks predicts better."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for trial in bws.trials.trials_in(bws.trials.load_summary(Path(__file__).with_name("summary.json"))):
        found[trial["settings"]["task"], trial["settings"]["method"]].append(trial)
    for task, picture in PICTURES.items():
        tied, containing = found[task, TIED], found[task, METHOD]
        strengths = [{row["name"]: row["strength"] for row in trial["sharing"]} for trial in containing]
        count = sum(as_predicted(of_layers, picture) for of_layers in strengths)
        ranges = [f"{n} {min(s[n] for s in strengths):.2f} to {max(s[n] for s in strengths):.2f}" for n in picture]
        print(f"{task:12}{count} of {len(strengths)} seeds; strengths: {', '.join(ranges)}")
        pairs = list(zip(tied, containing, strict=True))
        told = sum((a["log_evidence"] > b["log_evidence"]) == (a["nll"] < b["nll"]) for a, b in pairs)
        losses = [b["nll"] - a["nll"] for a, b in pairs]
        print(
            f"{'':12}containing - tied {mean(losses):+.3f} ± {stdev(losses) / len(losses) ** 0.5:.3f} nats; "
            f"the higher evidence has the lower NLL in {told} of {len(pairs)}"
        )


if __name__ == "__main__":
    main()
