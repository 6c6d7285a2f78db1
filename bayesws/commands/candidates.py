"""bayesws candidates: list the symmetries that images propose."""

import argparse
import json

from bayesws import data as data_sets
from bayesws.analysis.data_symmetries import candidates
from bayesws.commands.arguments import Parser, add_data, data_arguments, known_tasks, positive, seed


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "candidates",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="the symmetries that the images themselves propose, before any training",
        description="List the permutations of a patch's positions that the images' second and third\n"
        "moments allow, by their misfit, and name the group that the images are symmetric\n"
        "under. Nothing is written.",
        epilog="examples:\n  bayesws candidates --data mnist --task turned --train-size 10000\n"
        "  bayesws candidates --data mine.npz --kernel-size 5",
    )
    add_data(parser)
    parser.add_argument("--task", default="upright", metavar="TASK", help=f"{known_tasks()} (default upright)")
    parser.add_argument("--seed", type=seed, default=0, help="of the subset and the task's motions (default 0)")
    parser.add_argument("--kernel-size", type=positive, default=3, help="positions a side of a patch (default 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run it, print, write."""
    images = data_sets.load(**data_arguments(options), task=options.task, seed=options.seed)
    found = candidates(images.train, options.kernel_size)
    print(json.dumps(found.record(), indent=1) if options.json else found)
