"""What an evidence takes beside what was forecast, and the diagonal beside Kronecker factors: ratios, turn by turn."""

import statistics
import time
from typing import Any

import torch
from curvature import Rows, evidence
from networks import Pair, images, plain_cnn, sharing_cnn
from timing import interleaved, ratio
from torch import nn
from torchvision.models import resnet18

import bayesws as bws

KINDS = ("kron", "diag", "layer", "full")


def wide(width: int = 2048) -> nn.Sequential:
    """A linear layer with millions of weights behind another."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 10))


def in_colour(data: Pair) -> Pair:
    """Grey images as a network for photographs takes them: three channels of 32×32."""
    return nn.functional.pad(data[0], (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), data[1]


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """Forecast and taken in turns, at several sizes of network."""
    few, source = images(200 if quick else 1000)
    cases: dict[str, tuple[nn.Module, Pair, tuple[str | None, ...]]] = {
        "plain CNN": (plain_cnn(), few, ("kron", "diag", "layer")),
        "WSCNN": (sharing_cnn(), few, KINDS),
        "wide": (wide(512 if quick else 2048), few, ("kron", "diag")),
    }
    if not quick:
        torch.manual_seed(0)
        cases["ResNet-18"] = (resnet18(num_classes=10).eval(), in_colour(images(500)[0]), (None,))
    rows: Rows = []
    for name, (net, data, kinds) in cases.items():
        for kind in kinds:
            rows.append({"network": name} | _turns(net, data, kind, 1 if kind is None else min(repeats, 3)))
    return {"data": source, "tables": {"forecast / taken": rows}}


def diagonal(repeats: int, quick: bool) -> dict[str, Any]:
    """One pass with "diag" beside one with "kron", on a wide layer and on convolutions."""
    few, source = images(100 if quick else 500)
    nets = {"wide": wide(512 if quick else 2048), "plain CNN": plain_cnn(), "WSCNN": sharing_cnn()}
    rows: Rows = []
    for name, net in nets.items():
        jobs = {kind: (lambda net=net, kind=kind: evidence(net, few, kind)) for kind in ("kron", "diag")}
        seconds = interleaved(jobs, min(repeats, 3))
        row = {"network": name} | {kind: statistics.median(times) for kind, times in seconds.items()}
        rows.append(row | {"diag ÷ kron": ratio(seconds["diag"], seconds["kron"])})
    return {"data": f"{len(few[1])} images, {source}", "tables": {"diagonal": rows}}


def _turns(net: nn.Module, data: Pair, kind: str | None, turns: int) -> dict[str, Any]:
    said, taken = [], []
    for _ in range(turns):
        told = bws.forecast(net, data, kind)
        start = time.perf_counter()
        with torch.no_grad():
            bws.log_evidence(net, data, curvature=kind)
        taken.append(time.perf_counter() - start)
        said.append(told.seconds)
    return {
        "curvature": f"{told.curvature.kind}{'' if told.curvature.samples is None else ', sampled'}",
        "MB": told.memory / 1e6,
        "forecast, s": statistics.median(said),
        "taken, s": statistics.median(taken),
        "forecast ÷ taken": ratio(said, taken),
    }
