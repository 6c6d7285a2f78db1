"""Which motions were images moved by? Candidates from moments alone, and networks ranked by their evidence."""

import argparse
import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tables import summary_of

import bayesws as bws

CONFIG = Path(__file__).with_name("config.json")
COLOURS = {"planted": "#c1272d", "other": "#0b5394"}


def named(config: dict[str, Any], count: int, side: int | None = None) -> list[dict[str, Any]]:
    """What the moments of so many images say of every task and seed: the group, its probability, the misfits."""
    found = []
    for task, planted in config["tasks"].items():
        truth = bws.sharing.known_group(planted, config["kernel_size"], config["kernel_size"])
        elements = {tuple(p) for p in truth.permutations.tolist()}
        for seed in range(config["seeds"]):
            images = bws.data.load("mnist", task=task, seed=seed, train_size=count, test_size=1, side=side)
            began = time.perf_counter()
            seen = bws.candidates(images.train, config["kernel_size"])
            found.append(
                {
                    "task": task,
                    "images": count,
                    "side": side or 28,
                    "seed": seed,
                    "planted": planted,
                    "named": seen.group.name,
                    "elements": len(seen.group.permutations),
                    "p_value": seen.group.p_value,
                    "misfits": seen.misfits[:16].tolist(),
                    "is_planted": [tuple(p) in elements for p in seen.permutations[:16].tolist()],
                    "seconds": time.perf_counter() - began,
                }
            )
    return found


def ranked(config: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Networks over several groups, trained by the evidence on the images of every task, ranked by it."""
    options, found = config["select"], []
    for task, planted in config["tasks"].items():
        images = bws.data.load(
            "mnist", task=task, seed=seed, train_size=options["images"], test_size=2000, side=options["side"]
        )
        nets = {name: network(name, images, options) for name in options["groups"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ranking = bws.select(nets, images.train, **options["fit"])
        x, y = images.test
        for row in ranking.rows:
            fit = ranking.fits[row.name]
            found.append(
                {
                    "task": task,
                    "planted": planted,
                    "group": row.name,
                    "log_evidence": row.log_evidence,
                    "accuracy": float((fit.predict(x, kind="map").argmax(-1) == y).double().mean()),
                    "nll": fit.nll(x, y, kind="map"),
                    "parameters": row.parameters,
                    "seconds": row.seconds,
                }
            )
            print(f"{task:12} {row.name:14} {row.log_evidence:9.1f} nats, test NLL {found[-1]['nll']:.3f}", flush=True)
    return found


def network(group: str, images: bws.data.ImageData, options: dict[str, Any]) -> bws.models.WSCNN:
    """A network that shares over one group alone, of the width that the configuration gives it."""
    size = bws.sharing.known_group(group, 3, 3).size
    torch.manual_seed(0)
    return bws.models.WSCNN(
        in_channels=images.image_shape[0],
        num_classes=images.num_classes,
        hidden_channels=options["width"] // size,
        group_size=size,
        layers=options["layers"],
        group=group,
        pathways=("shared",),
    )


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """The misfits of the first sixteen permutations of every task, first seed, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(r["task"] for r in found))
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.6 * len(tasks), 3.2), sharey=True, layout="constrained")
    for axis, task in zip(axes, tasks, strict=True):
        record = next(r for r in found if r["task"] == task)
        for place, (misfit, planted) in enumerate(zip(record["misfits"], record["is_planted"], strict=True)):
            style = COLOURS["planted" if planted else "other"]
            axis.plot(place, max(misfit, 2e-5), "o", color=style, markersize=6)
        axis.set_yscale("log")
        axis.set_title(f"{task}\nnamed: {record['named']}", fontsize=9)
        axis.set_xticks([])
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("relative misfit (0 drawn at 2e-5)")
    figure.supxlabel("permutations of a 3×3 patch by their misfit; red: those the images were moved by", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def tell(found: list[dict[str, Any]]) -> None:
    """Print how often each data set was named rightly."""
    for count, side, task in dict.fromkeys((r["images"], r["side"], r["task"]) for r in found):
        mine = [r for r in found if (r["images"], r["side"], r["task"]) == (count, side, task)]
        right = sum(r["named"] == r["planted"] for r in mine)
        names = ", ".join(f"{number} {name}" for name, number in Counter(r["named"] for r in mine).most_common())
        print(
            f"{count:6} images of {side}×{side}, {task:12} named rightly in {right} of {len(mine)} seeds ({names}), "
            f"slowest {max(r['seconds'] for r in mine):.1f} s",
            flush=True,
        )


def main() -> int:
    """Run, print the tables, write results.json, its summary.json and misfits.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/symmetry_identification"), help="folder for the results")
    parser.add_argument("--skip-select", action="store_true", help="the candidates alone: half a minute")
    parser.add_argument("--quick", action="store_true", help="two seeds, one epoch: a smoke test")
    arguments = parser.parse_args()
    config = json.loads(CONFIG.read_text())
    if arguments.quick:
        config["seeds"], config["select"]["fit"]["epochs"] = 2, 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    began = time.perf_counter()
    result: dict[str, Any] = {"config": config, "candidates": named(config, config["images"])}
    tell(result["candidates"])
    result["fewer"] = [record for count, side in config["fewer"] for record in named(config, count, side)]
    tell(result["fewer"])
    draw(result["candidates"], arguments.out / "misfits.png")
    if not arguments.skip_select:
        result["select"] = ranked(config, 0)
        for task, planted in config["tasks"].items():
            best = next(r for r in result["select"] if r["task"] == task)
            print(f"{task:12} planted {planted}, ranked first {best['group']}")
    result["minutes"] = round((time.perf_counter() - began) / 60, 1)
    (arguments.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    bws.trials.save_summary(summary_of(result), arguments.out / "summary.json")
    print(f"{result['minutes']} minutes; written: {arguments.out}/results.json, summary.json, misfits.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
