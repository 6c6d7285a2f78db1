"""Planted groups: from how many examples does each objective find the planted permutations, and only those?

y_g = R_g w · x + noise with R_g from a known group, or from a part of one. The command is in the README beside it.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from tables import METHODS, TITLES, rows_of, summary_of
from torch import Tensor

import bayesws as bws

CONFIG = Path(__file__).with_name("config.json")
RING = [0, 1, 2, 5, 8, 7, 6, 3]  # the border of a 3 × 3 patch, walked round


def ring_turns() -> bws.sharing.Group:
    """C8 on a 3 × 3 patch: the ring moves on by 45 degrees a step, the centre stays."""
    turns = torch.arange(9).repeat(8, 1)
    for g in range(8):
        turns[g, RING] = torch.tensor(RING).roll(g)
    return bws.sharing.Group("ring-turns", turns)


def cyclic_subgroup(group: bws.sharing.Group, order: int) -> Tensor:
    """Which elements are the powers of the first element of that order, (G,) bool."""
    for generator in range(group.size):
        powers = [0]
        while (following := int(group.table[powers[-1], generator])) != 0:
            powers.append(following)
        if len(powers) == order:
            return torch.zeros(group.size, dtype=torch.bool).index_fill(0, torch.tensor(powers), True)
    raise ValueError(f"group {group.name!r}: no element of order {order}")


def shifts() -> bws.sharing.Group:
    """C8 on a line of 8."""
    return bws.sharing.known_group("cyclic-shifts", 8)


def cube() -> bws.sharing.Group:
    """The 24 turns of a cube on 2 × 2 × 2 voxels."""
    return bws.sharing.known_group("cube-turns", 2, 2, 2)


def everything(group: bws.sharing.Group) -> Tensor:
    """All elements share."""
    return torch.ones(group.size, dtype=torch.bool)


# the group, and which of its elements the copies take; the other copies have weights of their own
TOYS: dict[str, tuple[Callable[[], bws.sharing.Group], Callable[[bws.sharing.Group], Tensor]]] = {
    "shifts": (shifts, everything),
    "ring": (ring_turns, everything),
    "voxels": (cube, everything),
    "half_of_shifts": (shifts, lambda group: torch.arange(group.size) < 4),
    "c4_in_voxels": (cube, lambda group: cyclic_subgroup(group, 4)),
}


def planted(toy: str, seed: int, config: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and targets, then held-out inputs and their values without noise."""
    generator = torch.Generator().manual_seed(1000 + seed)  # not the stream of the initial weights
    make, shares = TOYS[toy]
    group, outputs, held_out = make(), config["outputs"], config["held_out_inputs"]
    w = torch.randn(outputs, group.degree, generator=generator)
    own = torch.randn(outputs, group.size, group.degree, generator=generator)
    kernel = torch.where(shares(group)[:, None], w[:, group.permutations], own)  # (R_g w)[n] = w[p_g[n]]
    x = torch.randn(config["most_examples"] + held_out, group.degree, generator=generator)  # smaller N: the first N
    f = torch.einsum("ogn,bn->bog", kernel, x)
    y = f + config["noise"] * torch.randn(f.shape, generator=generator)
    return x[:-held_out], y[:-held_out], x[-held_out:], f[-held_out:]


def start(group: bws.sharing.Group, seed: int, config: dict[str, Any]) -> bws.layers.WSLinear:
    """The layer at its initial weights, equal for every method."""
    torch.manual_seed(seed)
    net = bws.layers.WSLinear(
        group.degree, config["outputs"], bias=False, group_size=group.size, stack="dense", pathways=("shared",)
    )
    with torch.no_grad():
        for logits in net.structure():
            logits.mul_(config["logits_scale"])
    return net


def judged(layer: bws.layers.WSLinear, toy: str) -> dict[str, Any]:
    """What the stack holds, against what was planted.

    Sharing of a copy: s_g = (1 - H_g / log d) (1 - ‖W_g - R_g w‖² / ‖W_g‖²), H_g the mean row entropy of R_g. It is 1
    for a permutation of the canonical weights, 0 where R_g says nothing or the copy is not R_g w. s_g > ½ is a claim.
    """
    make, shares = TOYS[toy]
    group = make()
    with torch.no_grad():
        r, kernel = layer.representations(), layer.kernel().squeeze(2)
        assert layer.shared is not None
        through = torch.einsum("gnm,om->ogn", r, layer.shared.squeeze(1))
        explained = 1 - (kernel - through).square().sum((0, 2)) / kernel.square().sum((0, 2))
        entropy = -torch.xlogy(r, r).sum(-1).mean(-1)
        sharing = ((1 - entropy / math.log(group.degree)) * explained).numpy()
    nearest = np.array([linear_sum_assignment(-one.numpy())[1] for one in r])
    right = (nearest == group.permutations.numpy()).all(1)
    truth = shares(group).numpy()
    claims, rest = sharing > 0.5, np.arange(group.size) > 0
    alone = sharing[~truth]
    return {
        "found_all": bool(right[truth & rest].all()),
        "found_share": float(right[truth & rest].mean()),
        "sharing_of_planted": float(sharing[truth & rest].mean()),
        "sharing_of_others": float(alone.mean()) if len(alone) else None,
        "invented": int(claims[~truth].sum()),
        "claims_right": bool((claims == truth)[rest].all() and right[truth & rest].all()),
        "separated": bool(sharing[truth & rest].min() > alone.max()) if len(alone) else None,
        "row_entropy_nats": float(entropy[truth & rest].mean()),
    }


def fit_all(toy: str, seed: int, examples: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a method, on the same data from the same initial weights."""
    warnings.simplefilter("ignore")  # an evidence that still moves is in the records, under "notes"
    x, y, x_out, f_out = planted(toy, seed, config)
    net = start(TOYS[toy][0](), seed, config)

    def fit(objective: str, **changes: Any) -> tuple[bws.FitResult, float]:
        settings = config["schedule"] | {"batch_size": math.ceil(examples / config["weight_steps_an_epoch"])} | changes
        data = x[:examples], y[:examples]
        result = bws.fit(
            net, data, "regression", objective, seed=seed, progress=False, keep_posterior=False, **settings
        )
        return result, float((result.predict(x_out, "map") - f_out).square().mean())

    def record(method: str, fitted: tuple[bws.FitResult, float], began: float, **chosen: float) -> dict[str, Any]:
        result, error = fitted
        layer = result.model
        assert isinstance(layer, bws.layers.WSLinear)
        return {
            "toy": toy,
            "method": method,
            "examples": examples,
            "seed": seed,
            **judged(layer, toy),
            "held_out_squared_error": error,
            "log_evidence_nats": result.log_evidence,
            "notes": len(result.notes),
            "seconds": round(time.perf_counter() - began, 2),
            **chosen,
        }

    began = time.perf_counter()
    records = [record("evidence", fit("evidence", curvature=bws.Curvature(**config["curvature"])), began)]
    for method, rests in (("task", False), ("task_rested", True)):
        began = time.perf_counter()
        tried = [
            (fit("task", rest_structure=rests, **config["task"], **choice), choice)
            for choice in config["grids"][method]
        ]
        # by the held-out inputs' own values, without noise: more than any hold-out of the N could tell the baseline
        best, choice = min(tried, key=lambda pair: pair[0][1])
        records.append(record(method, best, began, **choice))
    return records


@dataclass(frozen=True)
class Problem:
    """One planted problem as a trial: all methods on the same data.

    Attributes:
        toy: which group is planted.
        seed: of data and initial weights.
        examples: N.
        config: what of the configuration bears on it.
    """

    toy: str
    seed: int
    examples: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        return f"{self.toy}-{self.examples}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        return asdict(self)

    def run(self) -> dict[str, Any]:
        """The records of all methods."""
        return {"records": fit_all(self.toy, self.seed, self.examples, self.config)}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Recovery against the number of examples, a panel a toy.

    Of partial groups a run counts if also every copy that shares has a larger s_g than any that does not.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    styles = {"evidence": ("#c1272d", "o", "-"), "task": ("#0b5394", "s", "--"), "task_rested": ("#38761d", "^", ":")}
    toys = [toy for toy in TOYS if any(r["toy"] == toy for r in rows)]
    figure, panels = plt.subplots(
        1, len(toys), figsize=(3.1 * len(toys), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, toy in zip(panels[0], toys, strict=True):
        mine = [r for r in rows if r["toy"] == toy]
        partial = "told_apart" in mine[0]
        for method, label in METHODS.items():
            runs = [r for r in mine if r["method"] == method]
            colour, marker, line = styles[method]
            shown = [100 * r["told_apart" if partial else "recovery"] for r in runs]
            axes.plot(
                [r["examples"] for r in runs], shown, line, color=colour, marker=marker, markersize=5, label=label
            )
        examples = sorted({r["examples"] for r in mine})
        axes.set_xscale("log", base=2)
        axes.set_xticks(examples, [str(n) for n in examples])
        axes.minorticks_off()
        axes.axhline(95, color="#999999", linewidth=0.8)
        axes.set_title(f"{TITLES[toy]}" + ("\n(and told from the others)" if partial else "\n"), fontsize=9)
        axes.set_xlabel("training examples N")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylim(-4, 104)
    panels[0][0].set_ylabel("runs with all planted\npermutations found (%)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a draft beside `path` and put it in place in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        write(draft)
        draft.chmod(0o644)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def run(toy: str, config: dict[str, Any], workers: int, out: Path) -> list[dict[str, Any]]:
    """All runs of one toy, in parallel processes of one thread each; what `out` holds is not run again."""
    bears = {name: value for name, value in config.items() if name not in ("examples", "seeds")}
    problems = [
        Problem(toy, seed, n, bears) for n in sorted(config["examples"][toy], reverse=True) for seed in config["seeds"]
    ]
    done = count(1)

    def tell(name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{toy}: {next(done)} of {len(problems)} problems", end="", file=sys.stderr, flush=True)

    finished = bws.trials.run(problems, out, workers, ["records"], tell)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    records = [record for one in finished for record in one["records"]]
    return sorted(records, key=lambda r: (r["examples"], r["seed"], list(METHODS).index(r["method"])))


def main(argv: list[str] | None = None) -> int:
    """Parse, run toy by toy, write results.json, summary.json and results.png after each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/planted_groups"), help="folder for the results")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (default 2)")
    parser.add_argument("--toys", nargs="+", choices=list(TOYS), default=list(TOYS), help="which ones (default all)")
    parser.add_argument("--quick", action="store_true", help="smoke test: smallest N, two seeds, a fifth of the epochs")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: expected at least 1")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.out):
            pass
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}; choose another folder")
    config = json.loads(CONFIG.read_text())
    if arguments.quick:
        config |= {"examples": {toy: [min(n)] for toy, n in config["examples"].items()}, "seeds": config["seeds"][:2]}
        config["schedule"] |= {"epochs": config["schedule"]["epochs"] // 5}
    records, minutes = kept(arguments.out / "results.json", arguments.toys, config)
    for toy in arguments.toys:
        try:
            found = run(toy, config, arguments.workers, arguments.out)
        except ValueError as error:
            parser.error(str(error))
        minutes[toy] = round(sum(r["seconds"] for r in found) / 60 / arguments.workers, 1)
        records += found
        rows = rows_of(records)
        result = {
            "question": "from how many examples are the planted permutations found, and only those?",
            "config": config,
            "minutes": minutes,
            "workers": arguments.workers,
            "versions": {"python": platform.python_version(), "bayesws": bws.__version__}
            | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "matplotlib")},
            "summary": rows,
            "runs": records,
        }
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        write_whole(arguments.out / "results.json", lambda p, text=text: p.write_text(text))  # type: ignore[misc]
        bws.trials.save_summary(summary_of(result), arguments.out / "summary.json")
        write_whole(arguments.out / "results.png", lambda p, rows=rows: draw(rows, p))  # type: ignore[misc]
        print_table([r for r in rows if r["toy"] == toy])
    print(f"{sum(minutes.values()):.1f} minutes; {arguments.out}/results.json, .png")
    return 0


def kept(path: Path, toys: list[str], config: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Runs and minutes of an earlier call with the same settings, as far as they are of other toys."""
    if not path.exists():
        return [], {}
    earlier = json.loads(path.read_text())
    if any(earlier["config"][name] != value for name, value in config.items() if name != "examples"):
        return [], {}
    records = [r for r in earlier["runs"] if r["toy"] not in toys and r["examples"] in config["examples"][r["toy"]]]
    return records, {toy: spent for toy, spent in earlier["minutes"].items() if toy not in toys}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Runs with all planted permutations found, %."""
    print(f"{rows[0]['toy']:<16}{'N':>4}  " + "  ".join(f"{method:>13}" for method in METHODS))
    for n in sorted({r["examples"] for r in rows}):
        cells = [f"{100 * r['recovery']:.0f}" for r in rows if r["examples"] == n]
        print(f"{'':<16}{n:>4}  " + "  ".join(f"{cell:>13}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
