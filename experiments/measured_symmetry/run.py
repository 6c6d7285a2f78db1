"""How symmetric are networks that were trained elsewhere? Equivariance errors and shared weights, layer by layer.

Trains networks on digits, takes a torchvision ResNet as it is made, and measures all of them as the command
`bayesws strength` does. How to run it is in the README beside it.
"""

import argparse
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tables import summary_of
from torch import Tensor, nn
from torchvision.models import resnet18

import bayesws as bws

TRANSFORMS = ("quarter-turn", "half-turn", "flip")
TRAIN, TEST, EPOCHS, SEED = 1000, 700, 60, 0
NEW_SEEDS = (1, 2, 3, 4, 5)  # of what a shared pathway would explain: seed 0 had been looked at before the prediction


def digits(task: str, seed: int = SEED) -> bws.data.ImageData:
    """Bundled digits moved as the task says."""
    return bws.data.load("digits", task=task, seed=seed, train_size=TRAIN, test_size=TEST)


def trained(net: nn.Module, task: str, seed: int = SEED) -> tuple[nn.Module, Tensor, float]:
    """The network after training on the task, its test images and its accuracy there."""
    data = digits(task, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = bws.fit(
            net, data.train, objective="task", epochs=EPOCHS, weight_decays=(1e-3,), seed=seed, progress=False
        )
    x, y = data.test
    return fit.model, x, float((fit.predict(x, kind="map").argmax(-1) == y).double().mean())


def main() -> None:
    """Train, measure, print, write results.json and its summary.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/measured_symmetry"))
    options = parser.parse_args()
    torch.manual_seed(SEED)
    nets = {
        "p4 network, turned digits": trained(bws.models.WSCNN(pathways=("shared",)), "turned"),
        "plain CNN, turned digits": trained(bws.models.CNN(hidden_channels=32), "turned"),
        "plain CNN, upright digits": trained(bws.models.CNN(hidden_channels=32), "upright"),
        "ResNet-18, random weights": (resnet18(num_classes=10).eval(), _colour(digits("upright").test[0]), 0.1),
    }
    record: dict[str, Any] = {}
    for name, (net, x, accuracy) in nets.items():
        errors = {transform: bws.equivariance_errors(net, x, transform) for transform in TRANSFORMS}
        print(f"\n{name} (accuracy {100 * accuracy:.1f} %)\n{'layer':26}" + "".join(f"{m:>20}" for m in TRANSFORMS))
        for layer in errors[TRANSFORMS[0]]:
            cells = [errors[transform][layer] for transform in TRANSFORMS]
            texts = [f"{c.error:.2f} ({c.interval[0]:.2f} to {c.interval[1]:.2f})" for c in cells]
            print(f"{layer:26}" + "".join(f"{text:>20}" for text in texts))
        record[name] = {
            "accuracy": accuracy,
            "errors": {m: {layer: asdict(row) for layer, row in rows.items()} for m, rows in errors.items()},
        }
    record["explained"] = {str(seed): explained(seed) for seed in NEW_SEEDS}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    bws.trials.save_summary(summary_of(record), options.out / "summary.json")


def explained(seed: int) -> dict[str, Any]:
    """How much of each plain convolution's weights a shared pathway would explain, by network, transform and layer."""
    torch.manual_seed(seed)
    shared, x, _ = trained(bws.models.WSCNN(pathways=("shared",)), "turned", seed)
    nets = {"p4 network, turned digits": (bws.harden(shared, x[:2]), x)}
    for task in ("turned", "flipped", "upright"):
        net, x, _ = trained(bws.models.CNN(hidden_channels=32), task, seed)
        nets[f"plain CNN, {task} digits"] = net, x
    nets["ResNet-18, random weights"] = resnet18(num_classes=10).eval(), _colour(digits("upright", seed).test[0])
    found: dict[str, Any] = {}
    for name, (net, x) in nets.items():
        rows = {
            transform: bws.analysis.orbit_decompositions(net, x[:300], transform, seed=seed) for transform in TRANSFORMS
        }
        print(
            f"\n{name}, seed {seed}: ρ (interval; chance), nats\n{'layer':26}" + "".join(f"{m:>36}" for m in TRANSFORMS)
        )
        for layer in rows[TRANSFORMS[0]]:
            texts = []
            for row in (of_transform[layer] for of_transform in rows.values()):
                low, high = row.interval
                texts.append(f"{row.explained:.2f} ({low:.2f} to {high:.2f}; {row.chance:.2f}), {row.evidence:+.0f}")
            print(f"{layer:26}" + "".join(f"{text:>36}" for text in texts))
        found[name] = {
            transform: {layer: _cells(row) for layer, row in of_transform.items()}
            for transform, of_transform in rows.items()
        }
    return found


def _cells(row: bws.analysis.OrbitDecomposition) -> dict[str, Any]:
    low, high = row.interval
    cells = {"rho": row.explained, "low": low, "high": high, "chance": row.chance, "nats": row.evidence}
    return {name: round(value, 4) for name, value in cells.items()} | {"shares": row.shares}


def _colour(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=4).expand(-1, 3, -1, -1)


if __name__ == "__main__":
    main()
