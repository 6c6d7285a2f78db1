"""Hold two comparisons, with different seeds, against the prediction; the command is in the README beside this file."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import bayesws as bws

HERE = Path(__file__).parent
PICTURE: dict[str, Callable[[list[float]], bool]] = {
    "turned": lambda strengths: min(strengths) > 0.9,
    "orientation": lambda strengths: strengths[0] > 0.9 and strengths[-1] < 0.1,
    "upright": lambda strengths: strengths[0] > 0.9 and strengths[-1] < 0.5,
}
NEAR = 2.0  # standard errors of a paired difference that are a tie


def has_picture(trial: bws.trials.Trial) -> bool:
    """Whether the layers share as the task was planted: both, the first alone, less in the last."""
    return PICTURE[trial.task]([row.strength for row in trial.sharing if not math.isnan(row.strength)])


def by_objective(comparison: bws.trials.Comparison, task: str) -> dict[str, list[bws.trials.Trial]]:
    """Trials of a task by objective."""
    return {o: trials for (t, _, o), trials in comparison.cells().items() if t == task}


def told(comparison: bws.trials.Comparison) -> list[str]:
    """A row for every task and objective, in Markdown."""
    heads = ["task", "objective", "accuracy %", "NLL", "gap", "ECE %", "Brier", "seconds, all trainings", "picture"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for task in PICTURE:
        for objective, trials in by_objective(comparison, task).items():
            first = objective == next(iter(by_objective(comparison, task)))
            lines.append(
                f"| {task + ' ' if first else ''}| {objective} | {100 * mean(t.accuracy for t in trials):.1f} | "
                f"{mean(t.nll for t in trials):.3f} | {mean(t.gap for t in trials):.3f} | "
                f"{100 * mean(t.calibration_error for t in trials):.1f} | {mean(t.brier for t in trials):.3f} | "
                f"{mean(t.seconds for t in trials):.0f} | {sum(map(has_picture, trials))} of {len(trials)} |"
            )
    return lines


def elsewhere(comparison: bws.trials.Comparison) -> list[str]:
    """Trained upright, tested turned: a row for every objective, in Markdown."""
    lines = ["| trained upright, tested turned | accuracy % | NLL | ECE % |", "|---|---|---|---|"]
    for objective, trials in by_objective(comparison, "upright").items():
        scores = [t.elsewhere["turned"] for t in trials]
        lines.append(
            f"| {objective} | {100 * mean(s.accuracy for s in scores):.1f} | {mean(s.nll for s in scores):.2f} | "
            f"{100 * mean(s.calibration_error for s in scores):.1f} |"
        )
    return lines


def read(run: Path) -> bws.trials.Comparison:
    """A run's comparison.json, or the summary that is kept of it."""
    raw = run / "comparison.json"
    return bws.trials.Comparison.load(raw if raw.exists() else run / "summary.json")


def winners(comparison: bws.trials.Comparison, task: str, metric: Callable[[bws.trials.Trial], float]) -> list[str]:
    """The best objective by a mean that is to be small, and all that are within the noise of it, paired by seed."""
    trials = {o: sorted(found, key=lambda t: t.seed) for o, found in by_objective(comparison, task).items()}
    best = min(trials, key=lambda o: mean(map(metric, trials[o])))
    ties = []
    for objective, mine in trials.items():
        losses = [metric(a) - metric(b) for a, b in zip(mine, trials[best], strict=True)]
        error = (sum((x - mean(losses)) ** 2 for x in losses) / (len(losses) - 1) / len(losses)) ** 0.5
        if objective != best and mean(losses) <= NEAR * error:
            ties.append(objective)
    return [best, *ties]


def main() -> None:
    """Print both runs, and who wins in each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, default=[HERE / "first", HERE / "second"])
    runs = {run.name: read(run) for run in parser.parse_args().runs}
    for name, comparison in runs.items():
        print("\n".join([f"{name} seeds", "", *told(comparison), "", *elsewhere(comparison), ""]))
    print("best, then what is within two standard errors of it:")
    for task in PICTURE:
        for what, metric in (("accuracy", lambda t: -t.accuracy), ("NLL", lambda t: t.nll)):
            found = [f"{name}: {', '.join(winners(c, task, metric))}" for name, c in runs.items()]
            print(f"{task:12} {what:9} {' | '.join(found)}")


if __name__ == "__main__":
    main()
