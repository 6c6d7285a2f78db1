"""bayesws compare: train the same network by several objectives and show how well and how much is shared."""

import argparse
import os
from dataclasses import asdict

from bayesws import data as data_sets
from bayesws.analysis.comparison import STRUCTURES, Comparison
from bayesws.analysis.plots import save_picture
from bayesws.commands.arguments import (
    Parser,
    add_data,
    add_network,
    check_device,
    count,
    data_arguments,
    known_tasks,
    positive,
)
from bayesws.commands.provenance import command, versions
from bayesws.commands.terminal import wide_console
from bayesws.compare import SAMPLED, Job, run_jobs
from bayesws.evidence.curvature import Curvature
from bayesws.files import check_writable
from bayesws.fit import Schedule
from bayesws.progress import epoch_bar
from bayesws.rivals import OBJECTIVES

DEMO_TASKS = ("turned", "orientation", "upright")
QUICK_EPOCHS = 40


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "compare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="evidence against task loss on one data set, several tasks and seeds",
        description="Train the same network by the evidence and by the task loss, and show what each layer shares.\n"
        "Writes comparison.json and comparison.png.",
        epilog="examples:\n  bayesws compare\n  bayesws compare --quick --out /tmp/look\n"
        "  bayesws compare --data mnist --data-root ~/data --train-size 2000 --test-size 2000 --task turned\n"
        "  bayesws compare --seeds 5 --structures all",
    )
    add_data(parser)
    parser.add_argument("--task", action="append", metavar="TASK", help=f"repeatable; {known_tasks()}")
    parser.add_argument("--seeds", type=positive, default=None, help="how many, from 0 (default 3)")
    parser.add_argument(
        "--structures",
        choices=("chosen", "all"),
        default="chosen",
        help="all: also the fully shared and the fully free network",
    )
    parser.add_argument("--quick", action="store_true", help=f"one seed, {QUICK_EPOCHS} epochs: a first look")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument(
        "--samples",
        type=count,
        default=SAMPLED.samples,
        metavar="K",
        help="sampled columns a datum in the curvature that sets the precisions (default 1; 0: all, exact and slower)",
    )
    add_network(parser, "runs/compare")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run it, print, write."""
    tasks = tuple(options.task or DEMO_TASKS)
    seeds = options.seeds or (1 if options.quick else 3)
    settings = {
        "epochs": options.epochs or (QUICK_EPOCHS if options.quick else Schedule().epochs),
        "device": options.device,
    }
    structures = tuple(STRUCTURES) if options.structures == "all" else ("chosen",)
    network = {"hidden_channels": options.hidden_channels, "layers": options.layers}
    data = data_arguments(options)
    curvature = Curvature("kron", samples=options.samples or None)
    check_device(options.device)
    check_writable(options.out)
    for task in tasks:
        data_sets.load(**data, task=task, seed=0)
    jobs = [
        Job(data, task, seed, structure, objective, network, settings, curvature)
        for task in tasks
        for structure in structures
        for objective in OBJECTIVES
        for seed in range(seeds)
        if structure == "chosen" or objective == "evidence"
    ]
    trials = {}
    processes = min(options.jobs, len(jobs)) if options.device == "cpu" else 1
    longest_first = sorted(jobs, key=lambda job: job.objective != "task")
    with epoch_bar(len(jobs), "trials") as advance:
        for index, trial in run_jobs(longest_first, processes):
            trials[id(longest_first[index])] = trial
            advance()
    comparison = Comparison(
        [trials[id(job)] for job in jobs],
        {
            **settings,
            "data": options.data,
            "tasks": tasks,
            "seeds": seeds,
            "curvature": asdict(curvature),
            **network,
            "versions": versions(),
            "command": command(),
        },
    )
    comparison.save(options.out / "comparison.json")
    save_picture(comparison, options.out / "comparison.png")
    console = wide_console()
    console.print(comparison.table())
    console.print(comparison.sharing_table())
    console.print(f"training by the evidence took {comparison.cost():.2f} times as long as by the task loss (median)")
    for trial in comparison.trials:
        for note in trial.notes:
            console.print(f"note: {trial.task}, {trial.objective}, seed {trial.seed}: {note}")
    console.print(f"written: {options.out / 'comparison.json'}, {options.out / 'comparison.png'}")
