"""Print the tables of this page from its summary.json, and what became of its predictions.

python experiments/quadrant/check.py
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bayesws as bws

TASKS = ("quadrant", "quadrant-told")
CHOOSES, ALONE, TASK_LOSS = "fc+conv", ("conv", "fc"), "fc+conv, task loss"
CHOICE = [f"blocks.{i}" for i in range(6)]  # whose output has more than one position
CHOSEN, KEPT = 0.9, 0.1

Trial = dict[str, Any]


def over_seeds(values: list[float], digits: int) -> str:
    """Mean ± standard error."""
    return f"{mean(values):.{digits}f} ± {stdev(values) / len(values) ** 0.5:.{digits}f}"


def scores(trials: list[Trial]) -> str:
    """Accuracy, NLL and evidence."""
    nll = over_seeds([t["nll"] for t in trials], 3)
    evidence = over_seeds([t["log_evidence"] / t["settings"]["train_size"] for t in trials], 3)
    return f"{over_seeds([100 * t['accuracy'] for t in trials], 1)} | {nll} | {evidence}"


def shares(trial: Trial, sizes: dict[str, int]) -> list[float]:
    """Of the convolution in every block, by relative effective dimensions."""
    found = []
    for row in trial["sharing"]:
        if row["name"] in CHOICE:
            used = {b: row["effective"][f"{b}.weight"] / sizes[f"{row['name']}.{b}.weight"] for b in ("conv", "fc")}
            found.append(used["conv"] / sum(used.values()))
    return found


def of_dense(trial: Trial) -> list[float]:
    """γ of the dense map, its number for every position included, as a share of the block's."""
    rows = [row["effective"] for row in trial["sharing"] if row["name"] in CHOICE]
    return [sum(gamma for name, gamma in row.items() if name.startswith("fc.")) / sum(row.values()) for row in rows]


def by_block(values: list[list[float]], digits: int) -> str:
    """The median over seeds."""
    return ", ".join(f"{sorted(block)[len(block) // 2]:.{digits}f}" for block in zip(*values, strict=True))


def main() -> None:
    """Print them."""
    net = bws.models.LayerwiseNet("fc+conv", width=2, in_channels=1, size=16, choose="input")
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    cells: dict[tuple[str, str], list[Trial]] = {}
    for trial in bws.trials.trials_in(bws.trials.load_summary(Path(__file__).parent / "summary.json")):
        cells.setdefault((trial["settings"]["task"], trial["settings"]["method"]), []).append(trial)
    print("| task | network | accuracy % | NLL | evidence per datum |\n|---|---|---|---|---|")
    for (task, method), trials in cells.items():
        print(f"| {task} | {method} | {scores(trials)} |")
    print("\n| task | trained by | share of the convolution, γ / P, by block | share of the dense map in γ |")
    print("|---|---|---|---|")
    for task in TASKS:
        for method, by in ((CHOOSES, "evidence"), (TASK_LOSS, "task loss")):
            trials = cells.get((task, method), [])
            if trials:
                relative = by_block([shares(t, sizes) for t in trials], 2)
                print(f"| {task} | {by} | {relative} | {by_block([of_dense(t) for t in trials], 3)} |")
    print()
    for task in TASKS:
        trials = cells[task, CHOOSES]
        chosen = sum(min(shares(t, sizes)) > CHOSEN for t in trials)
        kept = sum(max(of_dense(t)) > KEPT for t in trials)
        print(f"{task}: a convolution in every block in {chosen} of {len(trials)} seeds, a dense map kept in {kept}")
        better = min((cells[task, name] for name in ALONE), key=lambda found: mean(t["nll"] for t in found))
        nll = [a["nll"] - b["nll"] for a, b in zip(trials, better, strict=True)]
        name = better[0]["settings"]["method"]
        print(f"{task}: NLL less that of {name} alone {over_seeds(nll, 3)}")


if __name__ == "__main__":
    main()
