"""Print the tables of this page from its summaries, and what became of its predictions.

python experiments/quadrant/check.py
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bayesws as bws

HERE = Path(__file__).parent
TASKS = ("quadrant", "quadrant-told")
SUMS = ("fc+conv", "f-fc+conv")
TASK_LOSS = "fc+conv, task loss"
CHOICE = [f"blocks.{i}" for i in range(6)]  # whose output has more than one position
CHOSEN, KEPT = 0.9, 0.1

Trial = dict[str, Any]


def over_seeds(values: list[float], digits: int) -> str:
    """Mean ± standard error."""
    return f"{mean(values):.{digits}f} ± {stdev(values) / len(values) ** 0.5:.{digits}f}"


def per_datum(trial: Trial) -> float:
    """The log evidence, nats."""
    return trial["log_evidence"] / trial["settings"]["train_size"]


def scores(trials: list[Trial]) -> str:
    """Accuracy, NLL and evidence."""
    nll, evidence = over_seeds([t["nll"] for t in trials], 3), over_seeds([per_datum(t) for t in trials], 3)
    return f"{over_seeds([100 * t['accuracy'] for t in trials], 1)} | {nll} | {evidence}"


def sizes_of(blocks: str) -> dict[str, int]:
    """Numbers of parameters by pathway."""
    net = bws.models.LayerwiseNet(blocks, width=2, in_channels=1, size=16, choose="input")
    return {name: parameter.numel() for name, parameter in net.named_parameters()}


def shares(trial: Trial, sizes: dict[str, int]) -> list[float]:
    """Of the convolution in every block, by relative effective dimensions: γ / P of each branch's weights."""
    found = []
    for row in trial["sharing"]:
        if row["name"] in CHOICE:
            used: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
            for name, gamma in row["effective"].items():
                if name.endswith("weight"):
                    used[name.startswith("conv.")].append((gamma, sizes[f"{row['name']}.{name}"]))
            relative = {conv: sum(g for g, _ in of) / sum(p for _, p in of) for conv, of in used.items()}
            found.append(relative[True] / sum(relative.values()))
    return found


def of_all_positions(trial: Trial) -> list[float]:
    """γ of the map of all positions, its number for every position included, as a share of the block's."""
    rows = [row["effective"] for row in trial["sharing"] if row["name"] in CHOICE]
    return [sum(g for name, g in row.items() if not name.startswith("conv.")) / sum(row.values()) for row in rows]


def by_block(values: list[list[float]], digits: int) -> str:
    """The median over seeds."""
    return ", ".join(f"{sorted(block)[len(block) // 2]:.{digits}f}" for block in zip(*values, strict=True))


def main() -> None:
    """Print them."""
    cells: dict[tuple[str, str], list[Trial]] = {}
    for path in (HERE / "summary.json", HERE / "told" / "summary.json"):
        for trial in bws.trials.trials_in(bws.trials.load_summary(path)):
            cells.setdefault((trial["settings"]["task"], trial["settings"]["method"]), []).append(trial)
    print("| task | network | accuracy % | NLL | evidence per datum |\n|---|---|---|---|---|")
    for (task, method), trials in cells.items():
        print(f"| {task} | {method} | {scores(trials)} |")
    print("\n| task | network | share of the convolution, γ / P, by block | share of the map of all positions in γ |")
    print("|---|---|---|---|")
    for task in TASKS:
        for method in (*SUMS, TASK_LOSS):
            trials, sizes = cells.get((task, method), []), sizes_of(method.partition(",")[0])
            if trials:
                relative, used = [shares(t, sizes) for t in trials], [of_all_positions(t) for t in trials]
                print(f"| {task} | {method} | {by_block(relative, 2)} | {by_block(used, 3)} |")
    print()
    for task in TASKS:
        for name in (name for name in SUMS if (task, name) in cells):
            trials, sizes = cells[task, name], sizes_of(name)
            chosen = sum(min(shares(t, sizes)) > CHOSEN for t in trials)
            kept = sum(max(of_all_positions(t)) > KEPT for t in trials)
            print(f"{task}, {name}: a convolution in every block in {chosen} of {len(trials)} seeds, ", end="")
            print(f"a map of all positions kept in {kept}")
            alone = [cells[task, structure] for structure in name.split("+")]
            best = min(alone, key=lambda found: mean(t["nll"] for t in found))
            nll = [a["nll"] - b["nll"] for a, b in zip(trials, best, strict=True)]
            print(f"    NLL less that of {best[0]['settings']['method']} alone {over_seeds(nll, 3)}")
            best = max(alone, key=lambda found: mean(map(per_datum, found)))
            evidence = [per_datum(a) - per_datum(b) for a, b in zip(trials, best, strict=True)]
            name, less = best[0]["settings"]["method"], over_seeds(evidence, 3)
            print(f"    evidence per datum less that of {name} alone {less}")


if __name__ == "__main__":
    main()
