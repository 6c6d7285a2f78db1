"""Hold the finished runs against what was predicted; the commands are in the README beside this file."""

import argparse
import math
import sys
from pathlib import Path
from statistics import mean, stdev

import bayesws as bws

HERE = Path(__file__).parent
EXAMPLES = 1000
SHARES, FREE = 0.9, 0.1  # of ρ
LAYERS = ("lift", "group_convs.0", "head")
PICTURE = {"turned": "sss", "orientation": "ssf", "upright": "ssf"}  # by layer: shares, or is free

Trial = bws.trials.Trial


def drawn(trial: Trial) -> str:
    """By layer: s where it shares, f where it is free, - where it is neither."""
    strengths = {row.name: row.strength for row in trial.sharing}
    return "".join("s" if strengths[n] > SHARES else "f" if strengths[n] < FREE else "-" for n in LAYERS)


def with_error(values: list[float], digits: int, scale: float = 1.0, sign: str = "") -> str:
    """Mean ± standard error over seeds."""
    error = stdev(values) / math.sqrt(len(values))
    return f"{scale * mean(values):{sign}.{digits}f} ± {scale * error:.{digits}f}"


def scores(trials: list[Trial]) -> str:
    """Accuracy in %, and NLL in nats."""
    return f"{with_error([t.accuracy for t in trials], 1, 100)}, {with_error([t.nll for t in trials], 3)}"


def regret(trials: list[Trial], specials: list[list[Trial]]) -> tuple[str, str]:
    """Of the evidence, nats per datum, and of the NLL, against the special case that is the better one in the mean."""
    best = max(specials, key=lambda cases: mean(case.log_evidence for case in cases))
    differences = [(t.log_evidence - b.log_evidence) / EXAMPLES for t, b in zip(trials, best, strict=True)]
    least = min(mean(case.nll for case in cases) for cases in specials)
    nll = mean(t.nll for t in trials) - least
    return with_error(differences, 4, sign="+"), f"{nll:+.3f}"


def check(folder: Path) -> None:
    """Print in how many seeds the picture came out, the predictions, and what choosing cost."""
    cells = bws.trials.Comparison.load(folder / "summary.json").cells()
    by_evidence = bws.trials.Comparison.load(folder / "special_cases" / "summary.json").cells()
    special = {task: [by_evidence[task, pathways, "evidence"] for pathways in ("shared", "free")] for task in PICTURE}
    for task, expected in PICTURE.items():
        for objective in ("evidence", "task"):
            trials = cells[task, "both", objective]
            right = sum(drawn(trial) == expected for trial in trials)
            print(f"{task:11} {objective:8} picture in {right} of {len(trials)} seeds")
    print("\n| digits | evidence | task loss, 9 trainings | shared alone | free alone |\n|---|---|---|---|---|")
    for task in PICTURE:
        columns = [cells[task, "both", "evidence"], cells[task, "both", "task"], *special[task]]
        print(f"| {task} | {' | '.join(map(scores, columns))} |")
    print()
    for task in PICTURE:
        evidence, nll = regret(cells[task, "both", "evidence"], special[task])
        print(f"{task:11} less the better special case: evidence {evidence} nats per datum, test NLL {nll}")


def check_choosing(folder: Path) -> None:
    """Print in how many seeds the picture came out, and the scores, of a run of the network that chooses alone."""
    cells = bws.trials.Comparison.load(folder / "summary.json").cells()
    print("| digits | picture | evidence |\n|---|---|---|")
    for task in dict.fromkeys(task for task, _, _ in cells):
        trials = cells[task, "both", "evidence"]
        right = sum(drawn(trial) == PICTURE[task] for trial in trials)
        print(f"| {task} | {right} of {len(trials)} | {scores(trials)} |")


def check_special_cases(folder: Path) -> None:
    """Print the same of one run by the evidence alone, with its special cases, on the tasks that it has."""
    cells = bws.trials.Comparison.load(folder / "summary.json").cells()
    print("| digits | picture | evidence | shared alone | free alone | evidence less the better's | NLL less |")
    print("|---" * 7 + "|")
    for task in dict.fromkeys(task for task, _, _ in cells):
        trials, *alone = (cells[task, pathways, "evidence"] for pathways in ("both", "shared", "free"))
        right = sum(drawn(trial) == PICTURE[task] for trial in trials)
        columns = " | ".join(map(scores, (trials, *alone)))
        evidence, nll = regret(trials, alone)
        print(f"| {task} | {right} of {len(trials)} | {columns} | {evidence} | {nll} |")
    rows = []
    runs = [bws.trials.Comparison.load(place / "summary.json").cells() for place in (HERE, HERE / "task_74")]
    for task in dict.fromkeys(task for task, _, _ in cells):
        by_seed = {trial.seed: trial for run in runs for trial in run[task, "both", "task"]}
        pairs = [(t, by_seed[t.seed]) for t in cells[task, "both", "evidence"] if t.seed in by_seed]
        less = [mine.nll - theirs.nll for mine, theirs in pairs]
        if len(less) > 1:
            columns = " | ".join(scores(list(side)) for side in zip(*pairs, strict=True))
            lower = f"{sum(difference < 0 for difference in less)} of {len(less)}"
            rows.append(f"| {task} | {columns} | {with_error(less, 3, sign='+')} | {lower} |")
    if rows:  # of a run with seeds of the committed ones
        print("\n| digits | evidence | task loss, 9 trainings | NLL less the task loss's | lower in |")
        print("|---" * 5 + "|")
        print("\n".join(rows))


def main() -> int:
    """Read the summaries of a folder, and print the check."""
    parser = argparse.ArgumentParser(description="Hold a comparison against the predictions of this experiment.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--special-cases", action="store_true", help="of one run, by the evidence alone")
    kind.add_argument("--choosing", action="store_true", help="the network that chooses, by the evidence, alone")
    options = parser.parse_args()
    try:
        held = check_choosing if options.choosing else check_special_cases if options.special_cases else check
        held(options.folder)
    except (ValueError, KeyError) as error:
        print(f"check: error: {error}; needs the two runs of the README", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
