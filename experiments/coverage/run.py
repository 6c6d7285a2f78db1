"""Coverage: does the 95 % interval of the sharing strength hold the truth 95 times in 100, and how wide is it?

y_g = (R_g w + v_g) · x + noise with R_g the shifts of a line and weights drawn from the prior of a known strength. The
command is in the README beside it.
"""

import argparse
import json
import math
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tables import report, summary_of

import bayesws as bws
from bayesws.layers import WSLinear

CONFIG = Path(__file__).with_name("config.json")
FLOAT: dict[str, Any] = {"dtype": torch.float64}


def interval(strength: float, outputs: int, examples: int, seed: int, config: dict[str, Any]) -> dict[str, Any]:
    """One planted problem, one fit, one interval."""
    torch.set_num_threads(1)
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
        found = bws.sharing_strength(fit, seed=seed, **config["sampling"])
    (layer,) = found.layers
    low, high = layer.interval
    return {
        "strength": strength,
        "outputs": outputs,
        "examples": examples,
        "seed": seed,
        "mean": layer.mean,
        "low": low,
        "high": high,
        "covered": low <= strength <= high,
        "r_hat": math.nan if layer.r_hat is None else layer.r_hat,
        "effective_samples": math.nan if layer.effective_samples is None else layer.effective_samples,
        "by_grid": found.method == "quadrature",
    }


class Problem:
    """A job as the pool's processes take it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self, job: tuple[str, float, int, int, int]) -> dict[str, Any]:
        """Fit and interval."""
        _, strength, outputs, examples, seed = job
        return interval(strength, outputs, examples, seed, self.config)


def blocks(config: dict[str, Any]) -> dict[str, list[tuple[str, float, int, int, int]]]:
    """By name of a file: problems, each a part, strength, outputs, examples and seed."""
    found = {
        f"coverage-{strength}": [
            ("coverage", strength, config["outputs"], config["examples"], seed) for seed in range(config["data_sets"])
        ]
        for strength in config["strengths"]
    }
    widths = config["widths"]
    strength, seeds = widths["strength"], range(1000, 1000 + widths["data_sets"])
    found["outputs"] = [
        ("outputs", strength, count, config["examples"], seed) for count in widths["outputs"] for seed in seeds
    ]
    found["examples"] = [
        ("examples", strength, config["outputs"], count, seed) for count in widths["examples"] for seed in seeds
    ]
    return found


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
    finished: list[dict[str, Any]] = []
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers) as pool:
        for name, problems in blocks(config).items():
            path = options.out / f"{name}.json"
            if path.exists() and (kept := json.loads(path.read_text()))["config"] == config:
                finished.append(kept)
                continue
            began = time.perf_counter()
            records = []
            for record in pool.map(Problem(config), problems):
                records.append({"part": problems[0][0]} | record)
                print(f"\r{name}: {len(records)} of {len(problems)} ", end="", file=sys.stderr, flush=True)
            minutes = (time.perf_counter() - began) / 60
            finished.append({"config": config, "minutes": minutes, "records": records})
            path.write_text(json.dumps(finished[-1]) + "\n")
    summary = summary_of(finished)
    bws.trials.save_summary(summary, options.out / "summary.json")
    print(f"\n{report(summary)}")


if __name__ == "__main__":
    main()
