"""The command line: parse, call, print."""

import argparse
import json
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console

from bayesws import __version__
from bayesws import data as data_sets
from bayesws.analysis.comparison import STRUCTURES, Comparison
from bayesws.analysis.equivariance import EXACT, RESAMPLED, equivariance_errors, error_table
from bayesws.analysis.plots import save_picture
from bayesws.analysis.strength import sharing_strength
from bayesws.analysis.study_picture import save_study_picture
from bayesws.analysis.study_table import study_groups_table, study_table
from bayesws.candidates import candidates
from bayesws.compare import SAMPLED, Job, network_for, run_jobs
from bayesws.evidence.curvature import STRUCTURES as CURVATURES
from bayesws.evidence.curvature import Curvature
from bayesws.files import check_writable, write_whole
from bayesws.fit import OBJECTIVES, Schedule, fit
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.progress import epoch_bar
from bayesws.result import FitResult
from bayesws.select import WIDTH, group_candidates, group_network, select
from bayesws.select_layers import select_layers
from bayesws.study import Study, rows
from bayesws.trained import seen_by, trained_network

DEMO_TASKS = ("turned", "orientation", "upright")
QUICK_EPOCHS = 40
GROUPS = ("none", "half-turns", "quarter-turns", "dihedral")
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
epochs: one number, or one for every train size: {"100": 60, "300": 30}.
methods: each has a name and a model (WSCNN, WSResNet, CNN or ResNet); may have
  network    arguments of the model, but channels and classes
  fit        arguments of bayesws.fit and fields of its Schedule
  curvature  fields of bayesws.Curvature; without, one sampled Kronecker column
  seeds, train_sizes  of its own; train_sizes among those of the study

example:
  bayesws study experiments/turned_mnist/curve.json --out runs/turned_mnist"""
MOTIONS = ("quarter-turn", "half-turn", "flip", "shift:0.25", "scale:0.8")
SELECT_EPOCHS = 200
SELECT_STEPS = 40  # on the precisions of every candidate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, FloatingPointError) as error:
        print(f"bayesws {options.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        left = str(stop) or "nothing was written"
        print(f"bayesws {options.command}: interrupted, {left}", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bayesws", description="How much of its weights may each layer share? The evidence decides.")
    parser.add_argument("--version", action="version", version=f"bayesws {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    plain = argparse.RawDescriptionHelpFormatter
    compare = commands.add_parser(
        "compare",
        formatter_class=plain,
        help="evidence against task loss on one data set, several tasks and seeds",
        description="Train the same network by the evidence and by the task loss, and show what each layer shares.\n"
        "Writes comparison.json and comparison.png.",
        epilog="examples:\n  bayesws compare\n  bayesws compare --quick --out /tmp/look\n"
        "  bayesws compare --data mnist --data-root ~/data --train-size 2000 --test-size 2000 --task turned\n"
        "  bayesws compare --seeds 5 --structures all",
    )
    _add_data(compare)
    compare.add_argument("--task", action="append", metavar="TASK", help=f"repeatable; {_tasks()}")
    compare.add_argument("--seeds", type=_positive, default=None, help="how many, from 0 (default 3)")
    compare.add_argument(
        "--structures",
        choices=("chosen", "all"),
        default="chosen",
        help="all: also the fully shared and the fully free network",
    )
    compare.add_argument("--quick", action="store_true", help=f"one seed, {QUICK_EPOCHS} epochs: a first look")
    compare.add_argument("--jobs", type=_positive, default=os.cpu_count(), help="processes (default: all cores)")
    compare.add_argument(
        "--samples",
        type=_count,
        default=SAMPLED.samples,
        metavar="K",
        help="sampled columns a datum in the curvature that sets the precisions (default 1; 0: all, exact and slower)",
    )
    _add_common(compare, "runs/compare")
    compare.set_defaults(run=_compare)

    fit_command = commands.add_parser(
        "fit",
        formatter_class=plain,
        help="train and save one network",
        description="Train one network and save it as a folder: weights.safetensors and fit.json.",
        epilog="examples:\n  bayesws fit --task orientation --out runs/orientation\n"
        "  bayesws fit --data mine.npz --objective task --epochs 100",
    )
    _add_data(fit_command)
    fit_command.add_argument("--task", default="upright", metavar="TASK", help=_tasks())
    fit_command.add_argument("--seed", type=int, default=0, help="of split, weights and order (default 0)")
    fit_command.add_argument("--objective", choices=OBJECTIVES, default="evidence")
    fit_command.add_argument("--structure", choices=tuple(STRUCTURES), default="chosen", help="pathways")
    _add_common(fit_command, "runs/fit")
    fit_command.set_defaults(run=_fit)

    listing = commands.add_parser(
        "candidates",
        formatter_class=plain,
        help="the symmetries that the images themselves propose, before any training",
        description="List the permutations of a patch's positions that the images' second and third moments allow, by\n"
        "their misfit, and name the group that the images are symmetric under. Nothing is written.",
        epilog="examples:\n  bayesws candidates --data mnist --task turned --train-size 10000\n"
        "  bayesws candidates --data mine.npz --kernel-size 5",
    )
    _add_data(listing)
    listing.add_argument("--task", default="upright", metavar="TASK", help=_tasks())
    listing.add_argument("--seed", type=int, default=0, help="of the subset and the task's motions (default 0)")
    listing.add_argument("--kernel-size", type=_positive, default=3, help="positions a side of a patch (default 3)")
    listing.set_defaults(run=_candidates)

    select_command = commands.add_parser(
        "select",
        formatter_class=plain,
        help="which group do the data want? networks over several, ranked by their evidence",
        description="Train a network over each group, all of equal width, and rank them by their\n"
        "evidence; test images only add a column. Writes ranking.json.",
        epilog="examples:\n  bayesws select --task turned\n"
        "  bayesws select --task flipped --groups none,flips,up-down-flips,klein-four-axes\n"
        "  bayesws select --data mnist --train-size 1000 --task dihedral --layers 3 --epochs 40\n"
        "  bayesws select --task orientation --by-layer",
    )
    _add_data(select_command)
    select_command.add_argument("--task", default="upright", metavar="TASK", help=_tasks())
    select_command.add_argument(
        "--groups",
        default=",".join(GROUPS),
        metavar="A,B,...",
        help=f"known groups of 3×3 kernels, or none (default {','.join(GROUPS)})",
    )
    select_command.add_argument(
        "--by-layer", action="store_true", help="a group for every layer: also networks with different ones are tried"
    )
    select_command.add_argument(
        "--seeds", type=_positive, default=1, help="starts a group, the best counts (default 1)"
    )
    select_command.add_argument(
        "--width", type=_positive, default=WIDTH, help=f"channels × group elements of every layer (default {WIDTH})"
    )
    select_command.add_argument("--layers", type=_positive, default=2, help="weight-sharing layers (default 2)")
    select_command.add_argument("--epochs", type=_positive, default=SELECT_EPOCHS, help=f"default {SELECT_EPOCHS}")
    select_command.add_argument(
        "--curvature",
        choices=CURVATURES,
        help="of the evidence that ranks (default: full or layer where affordable, else kron)",
    )
    _add_place(select_command, "runs/select")
    select_command.set_defaults(run=_select)

    strength = commands.add_parser(
        "strength",
        formatter_class=plain,
        help="how symmetric is each layer of a network, with intervals",
        description="Measure how far every layer of a trained network is from moving its outputs as\n"
        "its inputs are moved (0: equivariant, 1: unrelated), with 95 % intervals. Of a\n"
        "saved fit also the posterior of every layer's sharing strength. Writes\n"
        "strength.json.",
        epilog="MODEL is a folder written by FitResult.save or `bayesws fit`, a torch.export\n"
        "program FILE.pt2, package.module:function that makes a network, or a torchvision\n"
        "name; the latter two with --weights FILE.safetensors or FILE.pt.\n\n"
        "examples:\n  bayesws strength runs/fit --task turned\n"
        "  bayesws strength resnet18 --weights resnet18.safetensors --data cifar10\n"
        "  bayesws strength my.nets:make --weights net.pt --motions flip,rotate:30 --json",
    )
    strength.add_argument("model", metavar="MODEL", help="see below")
    strength.add_argument("--weights", help="state dict: FILE.safetensors or FILE.pt (tensors alone)")
    _add_data(strength)
    strength.add_argument("--task", default="upright", metavar="TASK", help=_tasks())
    strength.add_argument(
        "--motions",
        default=",".join(MOTIONS),
        metavar="A,B,...",
        help=f"of {', '.join([*EXACT, *RESAMPLED])} (default {','.join(MOTIONS)})",
    )
    strength.add_argument("--seed", type=_count, default=0, help="default 0")
    strength.add_argument("--json", action="store_true", help="print JSON, not tables")
    _add_place(strength, "runs/strength")
    strength.set_defaults(run=_strength)

    study = commands.add_parser(
        "study",
        formatter_class=plain,
        help="a table of methods from a JSON file; what was finished before is kept",
        description="Run every method of a study on every task, number of images and seed, and print\n"
        "the table. Finished trials are kept in OUT/trials: an interrupted study goes on\n"
        "where it stopped. Writes study.json and study.png.",
        epilog=STUDY_HELP,
    )
    study.add_argument("plan", type=Path, help="the study, a JSON file, see below")
    study.add_argument("--seeds", type=_positive, default=None, help="instead of those in the study")
    study.add_argument("--jobs", type=_positive, default=os.cpu_count(), help="processes (default: all cores)")
    _add_place(study, "runs/study")
    study.set_defaults(run=_study)
    return parser


def _tasks() -> str:
    return f"one of {', '.join(data_sets.task_names())}"


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", default="digits", help="digits (default), mnist, fashion-mnist, cifar10 or a file.npz"
    )
    command.add_argument("--data-root", help="folder of the torchvision sets (default: $BAYESWS_DATA)")
    command.add_argument("--download", action="store_true", help="let torchvision download the set")
    command.add_argument("--train-size", type=_positive, help="training images (default: 1000 digits, else all)")
    command.add_argument("--test-size", type=_positive, help="test images (default: all)")


def _add_common(command: argparse.ArgumentParser, out: str) -> None:
    command.add_argument("--hidden-channels", type=_positive, default=8, help="for each group element (default 8)")
    command.add_argument("--layers", type=_positive, default=2, help="weight-sharing layers (default 2)")
    command.add_argument("--epochs", type=_positive, help=f"default {Schedule().epochs}")
    _add_place(command, out)


def _add_place(command: argparse.ArgumentParser, out: str) -> None:
    command.add_argument("--out", type=Path, default=Path(out), help=f"folder (default {out})")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def _data_arguments(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": options.data,
        "root": options.data_root,
        "download": options.download,
        "train_size": options.train_size,
        "test_size": options.test_size,
    }


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _compare(options: argparse.Namespace) -> None:
    tasks = tuple(options.task or DEMO_TASKS)
    seeds = options.seeds or (1 if options.quick else 3)
    settings = {
        "epochs": options.epochs or (QUICK_EPOCHS if options.quick else Schedule().epochs),
        "device": options.device,
    }
    structures = tuple(STRUCTURES) if options.structures == "all" else ("chosen",)
    network = {"hidden_channels": options.hidden_channels, "layers": options.layers}
    data = _data_arguments(options)
    curvature = Curvature("kron", samples=options.samples or None)
    _check_device(options.device)
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
            "versions": _versions(),
            "command": _command(),
        },
    )
    comparison.save(options.out / "comparison.json")
    save_picture(comparison, options.out / "comparison.png")
    console = _console()
    console.print(comparison.table())
    console.print(comparison.sharing_table())
    console.print(f"training by the evidence took {comparison.cost():.2f} times as long as by the task loss (median)")
    for trial in comparison.trials:
        for note in trial.notes:
            console.print(f"note: {trial.task}, {trial.objective}, seed {trial.seed}: {note}")
    console.print(f"written: {options.out / 'comparison.json'}, {options.out / 'comparison.png'}")


def _fit(options: argparse.Namespace) -> None:
    _check_device(options.device)
    check_writable(options.out)
    if options.out.exists() and not (options.out / "fit.json").is_file() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} exists and is not a saved fit: choose another --out")
    images = data_sets.load(**_data_arguments(options), task=options.task, seed=options.seed)
    torch.manual_seed(options.seed)
    net = network_for(images, options.structure, hidden_channels=options.hidden_channels, layers=options.layers)
    result = fit(
        net,
        images.train,
        objective=options.objective,
        seed=options.seed,
        device=options.device,
        epochs=options.epochs or Schedule().epochs,
    )
    result.save(options.out)
    x, y = images.test
    console = _console()
    accuracy = float((result.predict(x, kind="map").argmax(-1).cpu() == y).double().mean())
    console.print(f"test accuracy {100 * accuracy:.1f} %, test NLL {result.nll(x, y, kind='map'):.3f} nats per datum")
    console.print(f"log evidence {result.log_evidence:.1f} nats, summed over {result.evidence.examples} images")
    for row in result.sharing:
        effective = ", ".join(f"{n} {g:.1f} of {row.parameters[n]}" for n, g in row.effective.items())
        console.print(f"{row.name}: ρ = {row.strength:.2f}; effective parameters: {effective}")
    console.print(f"written: {options.out}")


def _study(options: argparse.Namespace) -> None:
    _check_device(options.device)
    check_writable(options.out)
    study = Study.read(options.plan, options.device, options.seeds)
    processes = options.jobs if options.device == "cpu" else 1
    try:
        with epoch_bar(len(study.cells), "trials") as advance:
            records = study.run(options.out, processes, advance)
    except KeyboardInterrupt as stop:
        if not (kept := study.kept(options.out)):
            raise
        place = options.out / "trials"
        raise KeyboardInterrupt(
            f"{kept} of {len(study.cells)} trials are kept in {place}: the same command goes on from there"
        ) from stop
    summary = {"versions": _versions(), "command": _command(), "trials": records}
    write_whole(options.out / "study.json", lambda path: path.write_text(json.dumps(summary) + "\n"))
    console = _console()
    cells = list(rows(records))
    save_study_picture(cells, options.out / "study.png")
    console.print(study_table(cells))
    if (groups := study_groups_table(cells)).row_count:
        console.print("", groups, sep="\n")
    console.print(f"written: {options.out / 'study.json'}, {options.out / 'study.png'}")


def _candidates(options: argparse.Namespace) -> None:
    images = data_sets.load(**_data_arguments(options), task=options.task, seed=options.seed)
    print(candidates(images.train, options.kernel_size))


def _select(options: argparse.Namespace) -> None:
    _check_device(options.device)
    check_writable(options.out)
    images = data_sets.load(**_data_arguments(options), task=options.task, seed=0)
    groups = [name.strip() for name in options.groups.split(",")]
    networks = group_candidates(images, groups, options.width, options.layers)
    settings: dict[str, Any] = {
        "test": images.test,
        "seeds": options.seeds,
        "evidence_curvature": options.curvature,
        "epochs": options.epochs,
        "every": max(1, options.epochs // SELECT_STEPS),
        "device": options.device,
    }
    network = {"width": options.width, "layers": options.layers}
    run = {"data": options.data, "task": options.task, **network, "versions": _versions(), "command": _command()}
    console = _console()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fits' notes are shown at the end
        if options.by_layer:
            make = partial(group_network, images=images, width=options.width)
            for pair in product(groups, repeat=2):  # every two that may follow each other: fails here, not after fits
                make(pair)
            found = select_layers(make, groups, options.layers, images.train, **settings)
            ranking = replace(found.ranking, settings=found.ranking.settings | run)
            replace(found, ranking=ranking).save(options.out / "ranking.json")
            console.print(found.table())
        else:
            ranking = select(networks, images.train, **settings)
            ranking = replace(ranking, settings=ranking.settings | run)
            ranking.save(options.out / "ranking.json")
    console.print(ranking.table())
    console.print((replace(ranking, rows=ranking.rows[:1]) if options.by_layer else ranking).sharing_table())
    for row in ranking.rows:
        for note in row.notes:
            console.print(f"note: {row.name}: {note}")
    if disagreement := ranking.disagreement():
        console.print(f"note: {disagreement}")
    console.print(
        f"{images.name}: the data want {ranking.best.name}, p = {ranking.probabilities[ranking.best.name]:.3g}"
    )
    console.print(f"written: {options.out / 'ranking.json'}")


def _strength(options: argparse.Namespace) -> None:
    _check_device(options.device)
    check_writable(options.out)
    fit = FitResult.load(options.model) if Path(options.model).is_dir() else None
    if fit is not None and options.weights:
        raise ValueError(f"--weights {options.weights} beside a saved fit: it has its own")
    net = trained_network(options.model, options.weights) if fit is None else fit.model
    images = data_sets.load(**_data_arguments(options), task=options.task, seed=options.seed)
    x = seen_by(net, images.test[0]).to(options.device)
    motions = [name.strip() for name in options.motions.split(",")]
    errors = {
        name: equivariance_errors(net.to(options.device), x, name, [""] if options.model.endswith(".pt2") else None)
        for name in motions
    }
    record: dict[str, Any] = {
        "model": options.model,
        "data": images.name,
        "images": len(x),
        "errors": {motion: {name: asdict(row) for name, row in rows.items()} for motion, rows in errors.items()},
        "versions": _versions(),
        "command": _command(),
    }
    found = None
    if fit is not None and fit.posterior and any(_is_shared_and_free(m) for m in fit.model.modules()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its notes are shown
            found = sharing_strength(fit, seed=options.seed)
        record["sharing"] = found.record()
    text = json.dumps(record, indent=1)
    write_whole(options.out / "strength.json", lambda path: path.write_text(text + "\n"))
    if options.json:
        print(text)
        return
    console = _console()
    console.print(error_table(errors))
    if found is not None:
        console.print(found.table())
        for note in found.notes:
            console.print(f"note: {note}")
    console.print(f"written: {options.out / 'strength.json'}")


def _is_shared_and_free(module: Any) -> bool:
    return isinstance(module, WeightSharing) and {"shared", "free"} <= {p.name for p in module.pathways()}


def _versions() -> dict[str, str]:
    return {p: version(p) for p in ("bayesws", "torch", "numpy")} | {"python": platform.python_version()}


def _command() -> list[str]:
    return ["bayesws", *sys.argv[1:]]


def _console() -> Console:
    """Wide where nobody sets a width: a pipe should not fold the tables."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
