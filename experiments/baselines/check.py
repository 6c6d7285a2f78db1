"""Print the page's table from the summary.json beside this file, and who predicts best; the command is on the page."""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import bayesws as bws

HERE = Path(__file__).parent
EVIDENCE = "evidence"
SHARES, FREE = 0.9, 0.1  # of ρ
PICTURE = {"turned": "sss", "orientation": "ssf", "upright": "ssf"}  # by layer: shares, or is free

Trials = list[dict[str, Any]]


def trials_by_task(folder: Path) -> dict[str, dict[str, Trials]]:
    """By task and method, by seed."""
    found: dict[str, dict[str, Trials]] = {}
    for trial in bws.trials.trials_in(bws.trials.load_summary(folder / "summary.json")):
        settings = trial["settings"]
        found.setdefault(settings["task"], {}).setdefault(settings["method"], []).append(trial)
    return found


def drawn(trial: dict[str, Any]) -> str:
    """By layer: s where it shares, f where it is free, - where it is neither."""
    return "".join(
        "s" if row["strength"] > SHARES else "f" if row["strength"] < FREE else "-" for row in trial["sharing"]
    )


def table(by_task: dict[str, dict[str, Trials]]) -> list[str]:
    """A row for every task and method, in Markdown."""
    heads = ["task", "method", "accuracy %", "NLL", "ECE %", "seconds, all trainings", "picture"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for task, by_method in by_task.items():
        least = min(by_method, key=lambda method: mean(t["nll"] for t in by_method[method]))
        for method, trials in by_method.items():
            nll = bws.trials.Summary.of([t["nll"] for t in trials]).show(3)
            right = sum(drawn(trial) == PICTURE[task] for trial in trials)
            cells = [
                task if method == next(iter(by_method)) else "",
                method,
                bws.trials.Summary.of([t["accuracy"] for t in trials]).show(1, 100),
                f"**{nll}**" if method == least else nll,
                f"{100 * mean(t['calibration_error'] for t in trials):.1f}",
                f"{mean(t['seconds'] for t in trials):.0f}",
                f"{right} of {len(trials)}",
            ]
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return lines


def against(by_method: dict[str, Trials]) -> list[str]:
    """The evidence's NLL less every rival's, paired by seed: mean ± standard error; in how many seeds it is lower."""
    mine = {trial["seed"]: trial["nll"] for trial in by_method[EVIDENCE]}
    told = []
    for method, trials in by_method.items():
        losses = [mine[trial["seed"]] - trial["nll"] for trial in trials]
        if method != EVIDENCE:
            lower = sum(loss < 0 for loss in losses)
            told.append(f"{method} {bws.trials.Summary.of(losses).show(3)}, lower in {lower} of {len(losses)}")
    return told


def main() -> None:
    """Print the table, and the evidence beside every rival."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=HERE, help="a folder with a study's summary.json")
    by_task = trials_by_task(parser.parse_args().run)
    print("\n".join(table(by_task)))
    print("\ntest NLL of the evidence less that of")
    for task, by_method in by_task.items():
        print(f"    {task:12}{'; '.join(against(by_method))}")


if __name__ == "__main__":
    main()
