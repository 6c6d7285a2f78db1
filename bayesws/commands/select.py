"""bayesws select: rank networks over several groups by their evidence."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from bayesws import data as data_sets
from bayesws.commands.arguments import (
    Parser,
    add_data,
    add_place,
    check_device,
    data_arguments,
    depth,
    known_tasks,
    positive,
    several,
    width,
    writing_into,
)
from bayesws.commands.terminal import wide_console
from bayesws.evidence.curvature import KINDS as CURVATURES
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import likelihood_named
from bayesws.io.progress import trial_bar
from bayesws.io.provenance import command, versions
from bayesws.trials import engine
from bayesws.trials.group_networks import (
    LIKELIHOOD,
    WIDTH,
    GroupStart,
    group_network,
    group_networks,
    size_name,
)
from bayesws.trials.ranking import Ranking
from bayesws.trials.select import comparable_curvature, ranking_of
from bayesws.trials.select_layers import Groups, network_name, search_layers
from bayesws.trials.starts import Start
from bayesws.trials.store import told_when_stopped

GROUPS = ("none", "half-turns", "quarter-turns", "dihedral")
SELECT_EPOCHS = 200
SELECT_STEPS = 40  # on the precisions of every candidate


def add(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add its parser."""
    parser = commands.add_parser(
        "select",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="which group do the data want? networks over several, ranked by their evidence",
        description="Train a network over each group, of each width and depth, and rank them by their\n"
        "evidence; test images only add a column. What an interrupted run has done is\n"
        "kept in OUT/trials and OUT/fits, and the same command goes on from there. Writes\n"
        "ranking.json.",
        epilog="examples:\n  bayesws select --task turned\n"
        "  bayesws select --task flipped --groups none,flips,up-down-flips,klein-four-axes\n"
        "  bayesws select --data mnist --train-size 1000 --task dihedral --layers 3 --epochs 40\n"
        "  bayesws select --task orientation --by-layer\n"
        "  bayesws select --groups quarter-turns --layers 1,2,3 --width 16,32",
    )
    add_data(parser)
    parser.add_argument("--task", default="upright", metavar="TASK", help=f"{known_tasks()} (default upright)")
    parser.add_argument(
        "--groups",
        default=",".join(GROUPS),
        metavar="A,B,...",
        help=f"known groups of 3×3 kernels, or none (default {','.join(GROUPS)})",
    )
    parser.add_argument(
        "--by-layer", action="store_true", help="a group for every layer: also networks with different ones are tried"
    )
    parser.add_argument("--seeds", type=positive, default=1, help="starts a group, the best counts (default 1)")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument(
        "--width",
        type=several(width),
        default=[WIDTH],
        metavar="N,...",
        help=f"channels × group elements of every layer (default {WIDTH})",
    )
    parser.add_argument(
        "--layers", type=several(depth), default=[2], metavar="N,...", help="weight-sharing layers (default 2)"
    )
    parser.add_argument("--epochs", type=positive, default=SELECT_EPOCHS, help=f"default {SELECT_EPOCHS}")
    parser.add_argument(
        "--curvature",
        choices=CURVATURES,
        help="of the evidence that ranks (default: full, by sampled columns where all cost too much)",
    )
    parser.add_argument("--json", action="store_true", help="print ranking.json, not tables")
    add_place(parser, "runs/select")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run it, print, write."""
    check_device(options.device)
    with writing_into(options.out, "ranking.json"):
        _run(options)


def _run(options: argparse.Namespace) -> None:
    images = data_sets.load(**data_arguments(options), task=options.task, seed=0)
    groups = [name.strip() for name in options.groups.split(",")]
    if options.by_layer and max(len(options.width), len(options.layers)) > 1:
        raise ValueError("--by-layer with several widths or numbers of layers: expected one of each")
    sizes = list(product(options.width, options.layers))
    networks = [make for size in sizes for make in group_networks(images, groups, *size).values()]
    if options.by_layer:
        for pair in product(groups, repeat=2):  # every two that may follow each other: fails here, not after fits
            group_network(pair, images, *options.width)
    made = (make() for make in networks)
    judged_by = partial(comparable_curvature, made, images.train, likelihood_named(LIKELIHOOD))
    asked = Curvature(options.curvature) if options.curvature else judged_by()
    network = {"width": options.width, "layers": options.layers}
    of_run = {"data": options.data, "task": options.task, **network, "versions": versions(), "command": command()}
    console = wide_console()
    if options.by_layer:
        (of_width,), (layers_of_all,) = options.width, options.layers
        rank = partial(_ranked, options, evidence_curvature=asked)
        found = search_layers(
            lambda tried: rank({network_name(net): (net, of_width) for net in tried}), groups, layers_of_all
        )
        ranking = replace(found.ranking, settings=found.ranking.settings | of_run)
        found = replace(found, ranking=ranking)
        found.save(options.out / "ranking.json")
        layers = [found.table()]
    else:
        layers = []
        named = {
            size_name(group, of_width, count, options.width, options.layers): ((group,) * count, of_width)
            for of_width, count in sizes
            for group in groups
        }
        ranking = _ranked(options, named, evidence_curvature=asked)
        ranking = replace(ranking, settings=ranking.settings | of_run)
        ranking.save(options.out / "ranking.json")
    if options.json:
        print((options.out / "ranking.json").read_text())
        return
    if disagreement := ranking.disagreement():
        console.print(f"note: {disagreement}")
    for table in (*layers, ranking.table()):
        console.print(table)
    console.print((replace(ranking, rows=ranking.rows[:1]) if options.by_layer else ranking).sharing_table())
    for row in ranking.rows:
        for note in row.notes:
            console.print(f"note: {row.name}: {note}")
    if ranking.within_spread:
        console.print(f"note: {ranking.within_spread}")
    console.print(f"{images.name}: {ranking.verdict}")
    console.print(f"written: {options.out / 'ranking.json'}")


def _ranked(
    options: argparse.Namespace, networks: Mapping[str, tuple[Groups, int]], evidence_curvature: Curvature
) -> Ranking:
    """Run what the folder does not hold yet of networks' starts, and rank the networks.

    Args:
        options: of the command.
        networks: the groups of their layers and their width, by what the ranking calls them.
        evidence_curvature: of the evidence that ranks.
    """
    schedule = {"epochs": options.epochs, "every": max(1, options.epochs // SELECT_STEPS)}
    specs = [
        GroupStart(
            label,
            groups,
            options.task,
            data_arguments(options),
            seed,
            of_width,
            schedule,
            evidence_curvature,
            device=options.device,
            checkpoints=str(options.out / "fits"),
        )
        for label, (groups, of_width) in networks.items()
        for seed in range(options.seeds)
    ]
    processes = options.jobs if options.device == "cpu" else 1
    try:
        with trial_bar(len(specs), processes) as bar:
            required = ("sharing", "log_evidence")
            records = engine.run(specs, options.out, processes, required, bar.advance, before=bar.begin)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_told(specs, options.out)) from stop
    return ranking_of([Start.from_record(record) for record in records], LIKELIHOOD, None, evidence_curvature)


def _told(specs: Sequence[GroupStart], folder: Path) -> str:
    """What Ctrl-C left: finished trials, or what a fit had done."""
    unfinished = f"what was done is kept in {folder / 'fits'}: the same command goes on from there"
    return told_when_stopped(specs, folder) or (unfinished if (folder / "fits").exists() else "")
