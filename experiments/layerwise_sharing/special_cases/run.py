"""The special cases of the network of `layerwise_sharing`, shared alone and free alone, trained and judged like it.

The command is in the README of the folder above.
"""

import argparse
import sys
import warnings
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

import bayesws as bws

TASKS, SEEDS = ("turned", "orientation", "upright"), range(20, 23)
JUDGE = bws.Curvature("full", samples=1)  # of the whole network, which has too many weights for all columns


@dataclass(frozen=True)
class SpecialCase:
    """One fit of a network that has one of the two pathways.

    Attributes:
        task, seed: of the data and of the fit.
        pathway: "shared" or "free".
    """

    task: str
    seed: int
    pathway: str

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        return f"{self.task}-{self.pathway}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        return asdict(self)

    def run(self) -> dict[str, Any]:
        """Fit as `bayesws compare` does, and judge."""
        data = bws.data.load("digits", task=self.task, seed=self.seed)
        torch.manual_seed(self.seed)
        net = bws.models.WSCNN(num_classes=data.num_classes, pathways=(self.pathway,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = bws.fit(net, data.train, seed=self.seed, progress=False, keep_posterior=False)
        with torch.no_grad():
            judged = bws.log_evidence(fit.model, data.train, fit.likelihood, JUDGE, prior=fit.prior)
        x, y = data.test
        return self.settings | {
            "log_evidence": float(judged),
            "accuracy": float((fit.predict(x).argmax(-1) == y).double().mean()),
            "nll": fit.nll(x, y),
            "training_seconds": fit.provenance.training_seconds,
        }


def main() -> None:
    """Run what the folder does not hold yet, and write summary.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/special_cases"))
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (default 2)")
    options = parser.parse_args()
    jobs = [SpecialCase(task, seed, pathway) for task in TASKS for seed in SEEDS for pathway in ("shared", "free")]
    done = count(1)

    def tell(name: str) -> None:
        print(f"\r{next(done)} of {len(jobs)}: {name} ", end="", file=sys.stderr, flush=True)

    try:
        records = bws.trials.run(jobs, options.out, options.workers, advance=tell)
    except ValueError as error:
        parser.error(str(error))
    command = "python experiments/layerwise_sharing/special_cases/run.py"
    told = (*jobs[0].settings, "log_evidence", "accuracy", "nll")
    kept = [{name: record[name] for name in told} for record in records]
    bws.trials.save_summary({"command": command, "records": kept}, options.out / "summary.json")


if __name__ == "__main__":
    main()
