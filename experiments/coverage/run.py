"""Coverage: does the 95 % interval of the sharing strength hold the truth 95 times in 100, and how wide is it?

y_g = (R_g w + v_g) · x + noise with R_g the shifts of a line and weights drawn from the prior of a known strength. The
command is in the README beside it.
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
from tables import report, summary_of

import bayesws as bws
from bayesws.layers import WSLinear

CONFIG = Path(__file__).with_name("config.json")
BEARS = ("positions", "noise", "fit")  # what of the configuration bears on one problem
FLOAT: dict[str, Any] = {"dtype": torch.float64}


def interval(strength: float, outputs: int, examples: int, seed: int, config: dict[str, Any]) -> dict[str, Any]:
    """One planted problem, one fit, one interval."""
    generator = torch.Generator().manual_seed(seed)
    d = config["positions"]
    group = bws.sharing.known_group("cyclic-shifts", d)
    torch.manual_seed(seed)
    net = WSLinear(d, outputs, bias=False, group_size=d, stack="fixed", group=group.name, **FLOAT)
    w = strength**0.5 * torch.randn(outputs, d, generator=generator, **FLOAT)
    v = (1 - strength) ** 0.5 * torch.randn(outputs, d, d, generator=generator, **FLOAT)
    kernel = torch.einsum("gnm,om->ogn", group.matrices(), w) + v
    x = torch.randn(examples, d, generator=generator, **FLOAT)
    f = torch.einsum("ogn,bn->bog", kernel, x)
    y = f + config["noise"] * torch.randn(f.shape, generator=generator, **FLOAT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bws.fit(
            net,
            (x, y),
            bws.Gaussian(config["noise"], learn=False, **FLOAT),
            curvature="full",
            seed=seed,
            progress=False,
            **config["fit"],
        )
        found = bws.sharing_strength(fit, seed=seed)
    (layer,) = found.layers
    low, high = layer.interval
    return {
        "strength": strength,
        "outputs": outputs,
        "examples": examples,
        "seed": seed,
        "median": layer.median,
        "low": low,
        "high": high,
        "covered": low <= strength <= high,
        "method": found.method,
    }


@dataclass(frozen=True)
class Problem:
    """One planted problem as a trial.

    Attributes:
        part: of the tables.
        strength, outputs, examples, seed: what is planted.
        config: what of the configuration bears on it.
    """

    part: str
    strength: float
    outputs: int
    examples: int
    seed: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        return f"{self.part}-{self.strength}-{self.outputs}-{self.examples}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        return asdict(self)

    def run(self) -> dict[str, Any]:
        """Fit and interval, and how long they took."""
        began = time.perf_counter()
        found = interval(self.strength, self.outputs, self.examples, self.seed, self.config)
        return {"part": self.part, **found, "seconds": time.perf_counter() - began}


def problems(config: dict[str, Any]) -> list[Problem]:
    """All problems: those of the coverage by strength, then those of the width by outputs and by examples."""
    bears = {name: config[name] for name in BEARS}
    outputs, examples, widths = config["outputs"], config["examples"], config["widths"]
    strength, seeds = widths["strength"], range(1000, 1000 + widths["data_sets"])
    return [
        *(
            Problem("coverage", planted, outputs, examples, seed, bears)
            for planted in config["strengths"]
            for seed in range(config["data_sets"])
        ),
        *(Problem("outputs", strength, count, examples, seed, bears) for count in widths["outputs"] for seed in seeds),
        *(Problem("examples", strength, outputs, count, seed, bears) for count in widths["examples"] for seed in seeds),
    ]


def main() -> None:
    """Run what the folder does not hold yet, print the tables, write summary.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (default 2)")
    parser.add_argument("--data-sets", type=int, help="a strength, instead of those of config.json")
    options = parser.parse_args()
    config = json.loads(CONFIG.read_text())
    if options.data_sets:
        config["data_sets"] = config["widths"]["data_sets"] = options.data_sets
    asked = problems(config)
    done = count(1)

    def tell(name: str) -> None:
        print(f"\r{next(done)} of {len(asked)}: {name} ", end="", file=sys.stderr, flush=True)

    try:
        records = bws.trials.run(asked, options.out, options.workers, advance=tell)
    except ValueError as error:
        parser.error(str(error))
    minutes = sum(record["seconds"] for record in records) / 60 / options.workers
    summary = summary_of([{"config": config, "minutes": minutes, "records": records}])
    bws.trials.save_summary(summary, options.out / "summary.json")
    print(f"\n{report(summary)}")


if __name__ == "__main__":
    main()
