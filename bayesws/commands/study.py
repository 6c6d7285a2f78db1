"""bayesws study: run a table of methods from a JSON file."""

import argparse
import json
import os

from bayesws.commands.arguments import Parser, add_place, check_device, place, positive, writing_into
from bayesws.commands.terminal import wide_console
from bayesws.io.files import without_nan, write_whole
from bayesws.io.json_files import sealed
from bayesws.io.progress import trial_bar
from bayesws.io.provenance import command, versions
from bayesws.report.figures.study import save_study_picture
from bayesws.trials.store import told_when_stopped
from bayesws.trials.study import Study
from bayesws.trials.study_table import rows, study_groups_table, study_table

STUDY_HELP = """a study, with all that it must have:
  {"data": {"name": "digits"},
   "tasks": ["turned"],
   "train_sizes": [100, 300],
   "seeds": 2,
   "epochs": 30,
   "methods": {
     "evidence": {"model": "WSCNN", "network": {"stack": "dense"}},
     "task loss": {"model": "WSCNN", "fit": {"objective": "task"}}}}

data: arguments of bayesws.data.load, such as root, side and test_size; in its
  name a $VARIABLE is filled in; "fresh": true draws motions anew every epoch.
seed: the first of the seeds, else 0.
judge: fields of bayesws.Curvature, such as {"kind": "full", "samples": 2}, that
  the evidences of all methods are by, so that they can be held against each
  other; without, every one is as exact as its network affords.
epochs: one number, or one for every train size: {"100": 60, "300": 30}.
methods: each has a name and a model (WSCNN, WSResNet, CNN, ResNet or
  LayerwiseNet); may have
  network    arguments of the model, but channels and classes
  fit        arguments of bayesws.fit and fields of its Schedule
  curvature  fields of bayesws.Curvature; without, as bayesws.fit chooses
  seeds, train_sizes  of its own; train_sizes among those of the study

example:
  bayesws study experiments/turned_mnist/curve.json --out runs/turned_mnist"""


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "study",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="a table of methods from a JSON file; what was finished before is kept",
        description="Run every method of a study on every task, number of images and seed, and print\n"
        "the table. Finished trials are kept in OUT/trials: an interrupted study goes on\n"
        "where it stopped. Writes study.json and study.png.",
        epilog=STUDY_HELP,
    )
    parser.add_argument("plan", type=place, help="the study, a JSON file, see below")
    parser.add_argument("--seeds", type=positive, default=None, help="instead of those in the study")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print study.json, not the table")
    add_place(parser, "runs/study")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run it, print, write."""
    check_device(options.device)
    with writing_into(options.out, "study.json"):
        _run(options)


def _run(options: argparse.Namespace) -> None:
    study = Study.read(options.plan, options.device, options.seeds)
    processes = options.jobs if options.device == "cpu" else 1
    try:
        with trial_bar(len(study.cells), processes) as bar:
            records = study.run(options.out, processes, bar.advance, bar.begin)
        summary = {"versions": versions(), "command": command(), "trials": records}
        text = json.dumps(sealed(without_nan(summary)), allow_nan=False)
        write_whole(options.out / "study.json", lambda path: path.write_text(text + "\n"))
        cells = list(rows(records))
        save_study_picture(cells, options.out / "study.png")
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(told_when_stopped(study.cells, options.out)) from stop
    if options.json:
        print(text)
        return
    console = wide_console()
    console.print(study_table(cells))
    if (groups := study_groups_table(cells)).row_count:
        console.print("", groups, sep="\n")
    console.print(f"written: {options.out / 'study.json'}, {options.out / 'study.png'}")
