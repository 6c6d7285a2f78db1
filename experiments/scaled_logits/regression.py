"""Of a regression: is the posterior's density N(f, V + σ²) or that of the MAP weights N(f, σ²) better on data held out?

The command is in the README beside it.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from tables import regression
from torch import nn

import bayesws as bws

CONFIG = Path(__file__).with_name("config.json")


def densities(examples: int, curvature: str, seed: int, epochs: int) -> dict[str, Any]:
    """One fit of a network with one hidden layer to some of the diabetes data; its densities of the rest."""
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:examples], order[examples:]
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = ((y - y[train].mean()) / y[train].std()).unsqueeze(1)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bws.fit(
            net,
            (x[train], y[train]),
            "regression",
            curvature=curvature,
            epochs=epochs,
            batch_size=min(100, examples),
            seed=seed,
            progress=False,
        )
    mean, variance = fit.predict_moments(x[test])
    noise = variance - fit.predict_moments(x[test], noise=False)[1]
    off = (y[test] - mean).abs()
    return {
        "examples": examples,
        "curvature": curvature,
        "seed": seed,
        "map": fit.nll(x[test], y[test], "map"),
        "posterior": fit.nll(x[test], y[test], "posterior"),
        "map_covers": float((off < 1.96 * noise.sqrt()).double().mean()),
        "posterior_covers": float((off < 1.96 * variance.sqrt()).double().mean()),
    }


def main() -> None:
    """Run all fits, print the table, write summary.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scaled_logits/regression"))
    options = parser.parse_args()
    config = json.loads(CONFIG.read_text())["regression"]
    records = [
        densities(examples, curvature, seed, config["epochs"])
        for examples in config["examples"]
        for curvature in config["curvatures"]
        for seed in range(config["seeds"])
    ]
    summary = {
        "command": "python experiments/scaled_logits/regression.py",
        "config": config,
        "cells": bws.trials.cells_of(records, ("examples", "curvature"), digits=5),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    bws.trials.save_summary(summary, options.out / "summary.json")
    print("\n".join(regression(records)))


if __name__ == "__main__":
    main()
