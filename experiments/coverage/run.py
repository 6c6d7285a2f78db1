"""Coverage: does the 95 % interval of the sharing strength hold the truth 95 times in 100, and how wide is it?

y_g = (R_g w + v_g) · x + noise with R_g the shifts of a line and weights drawn from the prior of a known strength. The
command is in the README beside it.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

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


def spread(record: dict[str, Any]) -> float:
    """The width of an interval on the scale of Fisher's z = atanh ρ, on which it does not depend on ρ."""
    return math.atanh(record["high"]) - math.atanh(record["low"])


def told(records: list[dict[str, Any]], config: dict[str, Any]) -> list[str]:
    """The tables."""
    lines = ["rho    covered  of   %      95 % of the coverage itself  median width"]
    plain = [r for r in records if r["part"] == "coverage"]
    for strength in config["strengths"]:
        mine = [r for r in plain if r["strength"] == strength]
        if not mine:
            lines.append(f"{strength:<6} not run")
            continue
        hits = sum(bool(r["covered"]) for r in mine)
        exact = binomtest(hits, len(mine)).proportion_ci(0.95)
        width = statistics.median(r["high"] - r["low"] for r in mine)
        lines.append(
            f"{strength:<6} {hits:7} {len(mine):4} {100 * hits / len(mine):6.1f}  {100 * exact.low:.1f} to "
            f"{100 * exact.high:.1f}                 {width:.3f}"
        )
    for part, what in (("outputs", "outputs (independent weights)"), ("examples", "examples")):
        mine = [r for r in records if r["part"] == part]
        if not mine:
            continue
        lines.append(f"\n{what}: median width in Fisher's z, and times the root of their number")
        for count in config["widths"][part]:
            width = statistics.median(spread(r) for r in mine if r[part] == count)
            lines.append(f"{count:6}  {width:.3f}  {width * count**0.5:.3f}")
    worst = max(r["r_hat"] for r in records if not math.isnan(r["r_hat"]))
    few = min(r["effective_samples"] for r in records if not math.isnan(r["effective_samples"]))
    lines.append(f"\nlargest R-hat {worst:.3f}, fewest effective samples {few:.0f}")
    return lines


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


def summary(finished: list[dict[str, Any]], config: dict[str, Any]) -> list[str]:
    """The tables of finished blocks, and what they took."""
    records = [record for block in finished for record in block["records"]]
    return [*told(records, config), f"{sum(block['minutes'] for block in finished):.1f} minutes"]


def main() -> None:
    """Run what the folder does not hold yet, print the tables, write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (default 2)")
    parser.add_argument("--data-sets", type=int, help="a strength, instead of those of config.json")
    parser.add_argument("--tables", action="store_true", help="print what the folder holds, run nothing")
    options = parser.parse_args()
    config = json.loads(CONFIG.read_text())
    if options.data_sets:
        config["data_sets"] = config["widths"]["data_sets"] = options.data_sets
    finished: list[dict[str, Any]] = []
    if options.tables:
        paths = [path for name in blocks(config) if (path := options.out / f"{name}.json").exists()]
        print("\n".join(summary([json.loads(path.read_text()) for path in paths], config)))
        return
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
    print("\n".join(["", *summary(finished, config)]))
    records = [record for block in finished for record in block["records"]]
    result = {"config": config, "minutes": sum(block["minutes"] for block in finished), "records": records}
    (options.out / "results.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
