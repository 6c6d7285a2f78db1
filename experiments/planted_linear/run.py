"""Planted linear problem: from how many examples does each objective find all planted permutations?

y_g = w · R_gᵀ x + noise, R_g the cyclic shifts. The command is in the README beside this file.
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
from tables import METHODS, rows_of, summary_of
from torch import Tensor

import bayesws as bws

CONFIG = Path(__file__).with_name("config.json")


def planted(seed: int, examples: int, config: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and targets, then held-out inputs and their values without noise."""
    generator = torch.Generator().manual_seed(1000 + seed)  # not the stream of the initial weights
    shifts, held_out = config["shifts"], config["held_out_inputs"]
    w = torch.randn(config["outputs"], shifts, generator=generator)
    x = torch.randn(max(config["examples"]) + held_out, shifts, generator=generator)  # smaller N: the first N of them
    stack = bws.sharing.known_group("cyclic-shifts", shifts).matrices(dtype=x.dtype)
    f = torch.einsum("gnm,om,bn->bog", stack, w, x)
    y = f + config["noise"] * torch.randn(f.shape, generator=generator)
    return x[:examples], y[:examples], x[-held_out:], f[-held_out:]


def start(seed: int, config: dict[str, Any], residual: bool) -> bws.layers.WSLinear:
    """The layer at its initial weights, equal for every method; without the residual it is W_g = R_g w."""
    torch.manual_seed(seed)
    net = bws.layers.WSLinear(
        config["shifts"],
        config["outputs"],
        bias=False,
        group_size=config["shifts"],
        stack="dense",
        pathways=("shared",),
    )
    with torch.no_grad():
        for logits in net.structure():
            logits.mul_(config["logits_scale"])
    dict(net.named_parameters())["free"].requires_grad_(residual)
    return net


def layer_of(result: bws.FitResult) -> bws.layers.WSLinear:
    """The trained layer: the network is nothing else."""
    assert isinstance(result.model, bws.layers.WSLinear)
    return result.model


def matched(stack: Tensor) -> np.ndarray:
    """The nearest permutation of every matrix of a stack, (G, d): p[n] = m where R[n, m] is chosen."""
    return np.array([linear_sum_assignment(-r.numpy())[1] for r in stack])


def fit_all(seed: int, examples: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a method, on the same data from the same initial weights."""
    warnings.simplefilter("ignore")  # what did not converge is in the records, under "notes"
    x, y, x_out, f_out = planted(seed, examples, config)
    schedule = dict(config["schedule"])
    schedule["batch_size"] = math.ceil(examples / config["weight_steps_an_epoch"])

    def fit(net: torch.nn.Module, data: tuple[Tensor, Tensor], **changes: Any) -> bws.FitResult:
        settings: dict[str, Any] = {"likelihood": "regression", "seed": seed, "progress": False, **schedule, **changes}
        return bws.fit(net, data, **settings)

    def bare() -> bws.layers.WSLinear:
        return start(seed, config, residual=False)

    def task(net: torch.nn.Module, data: tuple[Tensor, Tensor], **changes: Any) -> bws.FitResult:
        return fit(net, data, objective="task", **changes)

    def record(method: str, result: bws.FitResult, began: float, **chosen: float) -> dict[str, Any]:
        stack = layer_of(result).representations().detach()
        found, soft = matched(stack), stack[1:]
        right = (found == truth).all(1)[1:]
        # up to relabelling: R_g = T_g P for all g > 1, one P; the anchored identity then contradicts them
        relabelled = {tuple(p[np.argsort(t)]) for p, t in zip(found[1:], truth[1:], strict=True)}
        return {
            "method": method,
            "examples": examples,
            "seed": seed,
            "found_all": bool(right.all()),
            "found_share": float(right.mean()),
            "found_up_to_relabelling": len(relabelled) == 1,
            "row_entropy_nats": float(-torch.xlogy(soft, soft).sum(-1).mean()),
            "held_out_squared_error": float((result.predict(x_out) - f_out).square().mean()),
            "noise": float(result.likelihood.noise_precision()) ** -0.5,
            "log_evidence_nats": result.log_evidence,
            "weight_decay": result.recipe.weight_decay,
            "notes": len(result.notes),
            "last_note": result.notes[-1] if result.notes else None,
            "seconds": round(time.perf_counter() - began, 2),
            **chosen,
        }

    truth = bws.sharing.known_group("cyclic-shifts", config["shifts"]).permutations.numpy()
    began = time.perf_counter()
    by_evidence = fit(start(seed, config, residual=True), (x, y), objective="evidence", curvature=config["curvature"])
    records = [record("evidence", by_evidence, began)]

    began = time.perf_counter()
    plain = task(bare(), (x, y), weight_decays=tuple(config["weight_decays"]))
    records.append(record("task", plain, began))
    decay = (plain.recipe.weight_decay or 0.0,)
    burn_in = max(1, round(schedule["burn_in"] * schedule["epochs"]))

    def rested(data: tuple[Tensor, Tensor], entropy: float = 0.0) -> bws.FitResult:
        """Two fits in a row: the logits at rest for the burn-in, then free."""
        net = bare()
        for logits in net.structure():
            logits.requires_grad_(False)
        first = task(net, data, weight_decays=decay, epochs=burn_in)
        net = layer_of(first)
        for logits in net.structure():
            logits.requires_grad_(True)
        epochs = max(1, schedule["epochs"] - burn_in)
        return task(net, data, weight_decays=decay, epochs=epochs, entropy=entropy, likelihood=first.likelihood)

    began = time.perf_counter()
    records.append(record("task_burn_in", rested((x, y)), began))

    began = time.perf_counter()
    held = max(1, round(config["held_out"] * examples))
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
    kept, out = order[held:], order[:held]
    entropy = min(config["entropies"], key=lambda e: rested((x[kept], y[kept]), e).nll(x[out], y[out], kind="map"))
    records.append(record("task_entropy_burn_in", rested((x, y), entropy), began, entropy=entropy))
    return records


@dataclass(frozen=True)
class Problem:
    """One planted problem as a trial: all methods on the same data.

    Attributes:
        seed: of data and initial weights.
        examples: N.
        config: what of the configuration bears on it.
    """

    seed: int
    examples: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        return f"{self.examples}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        return asdict(self)

    def run(self) -> dict[str, Any]:
        """The records of all methods."""
        return {"records": fit_all(self.seed, self.examples, self.config)}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Recovery and held-out error against the number of examples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    styles = {
        "evidence": ("#c1272d", "o", "-"),
        "task": ("#0b5394", "s", "-"),
        "task_burn_in": ("#777777", "D", "--"),
        "task_entropy_burn_in": ("#38761d", "^", ":"),
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for method, label in METHODS.items():
        mine = [r for r in rows if r["method"] == method]
        colour, marker, line = styles[method]
        style = {"color": colour, "marker": marker, "linestyle": line, "label": label, "markersize": 5}
        n = [r["examples"] for r in mine]
        left.plot(n, [100 * r["recovery"] for r in mine], **style)
        right.plot(n, [r["median_held_out_squared_error"] for r in mine], **style)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({r["examples"] for r in rows}), [str(n) for n in sorted({r["examples"] for r in rows})])
        axes.minorticks_off()
        axes.set_xlabel("training examples N")
        axes.grid(alpha=0.3)
    left.set_ylim(-4, 104)
    left.set_ylabel("runs with all permutations found (%)")
    right.set_yscale("log")
    right.set_ylabel("held-out squared error (median)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
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


def run(config: dict[str, Any], workers: int, out: Path) -> list[dict[str, Any]]:
    """All runs, seeds in parallel processes of one thread each; what `out` holds is not run again."""
    bears = {name: value for name, value in config.items() if name != "seeds"}
    problems = [Problem(seed, n, bears) for n in sorted(config["examples"], reverse=True) for seed in config["seeds"]]
    done = count(1)

    def tell(name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{next(done)} of {len(problems)} problems", end="", file=sys.stderr, flush=True)

    finished = bws.trials.run(problems, out, workers, ["records"], tell)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    records = [record for one in finished for record in one["records"]]
    return sorted(records, key=lambda r: (r["examples"], r["seed"], list(METHODS).index(r["method"])))


def main(argv: list[str] | None = None) -> int:
    """Parse, run, write recovery.json, its summary.json and recovery.png, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/planted_linear"), help="folder for the results")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (default 2)")
    parser.add_argument("--quick", action="store_true", help="smoke test: N = 16, two seeds, a fifth of the epochs")
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
        config |= {"examples": [16], "seeds": config["seeds"][:2]}
        config["schedule"] |= {"epochs": config["schedule"]["epochs"] // 5}
    try:
        records = run(config, arguments.workers, arguments.out)
    except ValueError as error:
        parser.error(str(error))
    rows = rows_of(records)
    result = {
        "question": "from how many examples are all planted permutations found?",
        "config": config,
        "minutes": round(sum(r["seconds"] for r in records) / 60 / arguments.workers, 1),
        "workers": arguments.workers,
        "versions": {"python": platform.python_version(), "bayesws": bws.__version__}
        | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "matplotlib")},
        "summary": rows,
        "runs": records,
    }
    write_whole(
        arguments.out / "recovery.json", lambda p: p.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    )
    bws.trials.save_summary(summary_of(result), arguments.out / "summary.json")
    write_whole(arguments.out / "recovery.png", lambda p: draw(rows, p))
    print(f"{'N':>4}  " + "  ".join(METHODS))
    for n in sorted({r["examples"] for r in rows}):
        cells = [f"{100 * r['recovery']:>{len(r['method'])}.0f}" for r in rows if r["examples"] == n]
        print(f"{n:>4}  " + "  ".join(cells))
    print(f"% of runs with all permutations found; {result['minutes']} minutes; {arguments.out}/recovery.json, .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
