"""Scaled logits: is the scale that the data left out one by one ask for better than none, on data held out?

The command is in the README beside it.
"""

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from leave_one_out import GRID, losses, scale_for, with_and_without
from tables import report, summary_of

import bayesws as bws

CONFIG = Path(__file__).with_name("config.json")
BEARS = ("fit", "standard_errors")


@dataclass(frozen=True)
class Job:
    """One fit, and its predictions.

    Attributes:
        task, seed: of the data and of the fit.
        config: what of the configuration bears on it.
    """

    task: str
    seed: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        return f"{self.task}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        return asdict(self)

    def run(self) -> dict[str, Any]:
        """Fit, scale, and the losses on the test data: without scale, with it, with the best in hindsight."""
        data = bws.data.load("digits", task=self.task, seed=self.seed)
        torch.manual_seed(self.seed)
        net = bws.models.WSCNN(num_classes=data.num_classes, contains=True)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = bws.fit(
                net,
                data.train,
                curvature=bws.Curvature("kron", samples=1),
                seed=self.seed,
                progress=False,
                **self.config["fit"],
            )
        fitted = time.perf_counter()
        x, y = data.train
        logits, without = with_and_without(fit, x, y)
        best, scale = scale_for(without, y, self.config["standard_errors"])
        ended = time.perf_counter()
        test_x, test_y = data.test
        with torch.no_grad():
            outputs = fit.model(test_x).double()
        plain, scaled = losses(outputs, test_y, 1.0), losses(outputs, test_y, scale)
        difference = scaled - plain
        hindsight = min(GRID, key=lambda s: float(losses(outputs, test_y, s).mean()))
        return {
            "task": self.task,
            "seed": self.seed,
            "accuracy": float((outputs.argmax(-1) == test_y).double().mean()),
            "train_nll": float(losses(logits, y, 1.0).mean()),
            "left_out_nll": float(losses(without, y, 1.0).mean()),
            "left_out_scaled": float(losses(without, y, scale).mean()),
            "left_out_best": float(losses(without, y, best).mean()),
            "best_scale": best,
            "scale": scale,
            "map": float(plain.mean()),
            "scaled": float(scaled.mean()),
            "difference": float(difference.mean()),
            "standard_error": float(difference.std()) / len(difference) ** 0.5,
            "at_best_scale": float(losses(outputs, test_y, best).mean()),
            "hindsight_scale": hindsight,
            "hindsight": float(losses(outputs, test_y, hindsight).mean()),
            "posterior": fit.nll(test_x, test_y, kind="posterior"),
            "fit_seconds": fitted - began,
            "scale_seconds": ended - fitted,
        }


def main() -> None:
    """Run what the folder does not hold yet, print the tables, write summary.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scaled_logits"))
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each (default 1)")
    options = parser.parse_args()
    config = json.loads(CONFIG.read_text())
    bears = {name: config[name] for name in BEARS}
    jobs = [Job(task, seed, bears) for seed in config["seeds"] for task in config["tasks"]]
    done = count(1)

    def tell(name: str) -> None:
        print(f"\r{next(done)} of {len(jobs)}: {name} ", end="", file=sys.stderr, flush=True)

    try:
        records = bws.trials.run(jobs, options.out, options.workers, advance=tell)
    except ValueError as error:
        parser.error(str(error))
    summary = summary_of(records, config)
    bws.trials.save_summary(summary, options.out / "summary.json")
    print(f"\n{report(summary)}")


if __name__ == "__main__":
    main()
