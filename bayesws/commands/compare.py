"""bayesws compare: train the same network by several objectives and show how well and how much is shared."""

import argparse
import math
import os
from operator import attrgetter
from typing import Any

from bayesws import data as data_sets
from bayesws.commands.arguments import (
    Parser,
    add_data,
    add_network,
    check_device,
    count,
    data_arguments,
    known_tasks,
    network_options,
    positive,
    schedule_options,
    seed,
    writing_into,
)
from bayesws.commands.terminal import wide_console
from bayesws.evidence.curvature import Curvature
from bayesws.io.progress import trial_bar
from bayesws.io.provenance import command, versions
from bayesws.report.figures.comparison import save_picture
from bayesws.training.objectives.names import OBJECTIVES, objective_named
from bayesws.trials import engine
from bayesws.trials.compare import DEFAULT_OBJECTIVES
from bayesws.trials.comparison import PATHWAYS, Comparison
from bayesws.trials.records import Trial
from bayesws.trials.spec import TrialSpec
from bayesws.trials.store import told_when_stopped

DEMO_TASKS = ("turned", "orientation", "upright")
QUICK_EPOCHS = 40


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "compare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="evidence against the task loss and other baselines, several tasks and seeds",
        description="Train the same network by the evidence and by the task loss, or by other\n"
        "baselines, and show how well each does and what each layer shares. Tasks with the\n"
        "same labels are also tested on each other's images. Finished trials are kept in\n"
        "OUT/trials, the first seed's networks in OUT/fits: an interrupted run goes on\n"
        "where it stopped. Writes comparison.json and comparison.png.",
        epilog="examples:\n  bayesws compare\n  bayesws compare --quick --out /tmp/look\n"
        "  bayesws compare --data mnist --train-size 2000 --test-size 2000 --task turned\n"
        "  bayesws compare --seeds 5 --pathways all\n"
        "  bayesws compare --task turned --objectives all --seed 3",
    )
    add_data(parser)
    parser.add_argument("--task", action="append", metavar="TASK", help=f"repeatable; {known_tasks()}")
    parser.add_argument("--seeds", type=positive, default=None, help="how many (default 3)")
    parser.add_argument("--seed", type=seed, default=0, help="the first of them (default 0)")
    parser.add_argument(
        "--objectives",
        default=",".join(DEFAULT_OBJECTIVES),
        metavar="A,B,...",
        help=f"all, or of {', '.join(OBJECTIVES)} (default {','.join(DEFAULT_OBJECTIVES)})",
    )
    parser.add_argument(
        "--pathways",
        choices=("both", "all"),
        default="both",
        help="all: also the fully shared and the fully free network",
    )
    parser.add_argument("--quick", action="store_true", help=f"one seed, {QUICK_EPOCHS} epochs: a first look")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument(
        "--samples",
        type=count,
        metavar="K",
        help="set the precisions by Kronecker factors of K sampled columns a datum (0: all; default: by the exact\n"
        "evidence wherever it can be afforded)",
    )
    parser.add_argument("--json", action="store_true", help="print comparison.json, not tables")
    add_network(parser, "runs/compare")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run what the folder does not hold yet, write the comparison and its picture, print the tables."""
    check_device(options.device)
    with writing_into(options.out, "comparison.json"):
        _run(options)


def _run(options: argparse.Namespace) -> None:
    specs = _specs(options)
    processes = options.jobs if options.device == "cpu" else 1
    try:
        with trial_bar(len(specs), processes) as bar:
            told = (bar.advance, attrgetter("cost"), bar.begin)
            records = engine.run(specs, options.out, processes, ("sharing", "nll"), *told)
        same = {k: v for k, v in specs[0].settings.items() if k not in ("task", "seed", "pathways", "objective")}
        same["network"] = {k: v for k, v in same["network"].items() if k != "pathways"}
        seeds = [options.seed + s for s in range(_seeds(options))]
        run = {"seeds": seeds, "versions": versions(), "command": command()}
        comparison = Comparison([Trial.from_record(r) for r in records], same | run)
        comparison.save(options.out / "comparison.json")
        save_picture(comparison, options.out / "comparison.png")
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(told_when_stopped(specs, options.out)) from stop
    if options.json:
        print(comparison.as_json())
        return
    console = wide_console()
    console.print(comparison.table())
    console.print(comparison.calibration_table())
    if len({t.seed for t in comparison.trials}) > 1 and comparison.differences():
        console.print(comparison.difference_table())
    if any(t.elsewhere for t in comparison.trials):
        console.print(comparison.elsewhere_table())
    console.print(comparison.sharing_table())
    if not math.isnan(cost := comparison.cost()):
        console.print(f"one training by the evidence took {cost:.2f} times as long as one by the task loss (median)")
    for trial in comparison.trials:
        for note in trial.notes:
            console.print(f"note: {trial.task}, {trial.objective}, seed {trial.seed}: {note}")
    console.print(f"written: {options.out / 'comparison.json'}, {options.out / 'comparison.png'}")


def _specs(options: argparse.Namespace) -> list[TrialSpec]:
    """All trials, in the order of the tables; raises where the data of one cannot be loaded."""
    tasks = tuple(dict.fromkeys(options.task or DEMO_TASKS))
    pathways = tuple(PATHWAYS) if options.pathways == "all" else ("both",)
    data, classes = data_arguments(options), {}
    for task in tasks:
        classes[task] = data_sets.load(**data, task=task, seed=options.seed).num_classes
    network = network_options(options)
    same: dict[str, Any] = {
        "fit": schedule_options(options) | ({"epochs": QUICK_EPOCHS} if options.quick and not options.epochs else {}),
        "curvature": None if options.samples is None else Curvature("kron", samples=options.samples or None),
        "device": options.device,
    }
    return [
        TrialSpec(
            task,
            data,
            seed,
            network=network | {"pathways": list(PATHWAYS[name])},
            objective=objective,
            labels={"pathways": name, "objective": objective},
            elsewhere=tuple(t for t in tasks if t != task and classes[t] == classes[task]),
            fits=str(options.out / "fits") if seed == options.seed and name == "both" else None,
            **same,
        )
        for task in tasks
        for name in pathways
        for objective in _objectives(options.objectives)
        for seed in range(options.seed, options.seed + _seeds(options))
        if name == "both" or objective == "evidence"
    ]


def _seeds(options: argparse.Namespace) -> int:
    return options.seeds or (1 if options.quick else 3)


def _objectives(names: str) -> tuple[str, ...]:
    if names == "all":
        return OBJECTIVES
    objectives = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in objectives:
        objective_named(name)
    return objectives
