"""What sampling costs in accuracy: bias and spread of the evidence and its gradients against the exact pass."""

import math
from typing import Any

import torch
from torch import Tensor, nn

import bayesws as bws

SAMPLES = (1, 4, 16)
SUBSETS = (1 / 16, 1 / 4, 1.0)
SEEDS = 30


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """B3: for every number of samples and every subset, over seeds: bias and standard deviation.

    The evidence in nats per datum; the gradients, in the log precisions and in the logits of the stacks, as norms
    relative to the exact gradient's. `repeats` is not used: seeds are what is repeated.
    """
    data = bws.data.load("digits", train_size=256 if quick else 1000).train
    net = soft_network(data, epochs=5 if quick else 60)
    exact = _measured(net, data, "kron")
    rows = []
    for subset in SUBSETS[1:] if quick else SUBSETS:
        for samples in SAMPLES[:1] if quick else (*SAMPLES, None):
            if samples is None and subset == 1.0:
                continue  # the exact pass itself
            found = [
                _measured(net, data, bws.Curvature("kron", samples=samples, subset=subset, seed=seed))
                for seed in range(3 if quick else SEEDS)
            ]
            rows.append(
                {"subset": f"{subset:g}", "samples": "all" if samples is None else str(samples)}
                | _nats(found, exact, len(data[1]))
                | _gradient("log precisions", [f[1] for f in found], exact[1])
                | _gradient("logits", [f[2] for f in found], exact[2])
            )
    return {
        "network": "WSCNN on 8×8 digits, 4 channels × 4, dense soft stacks, shared and free pathways",
        "data": f"{len(data[1])} digits; {3 if quick else SEEDS} seeds; exact log evidence {float(exact[0]):.2f} nats",
        "norms of the exact gradients": f"log precisions {exact[1].norm():.4g}, logits {exact[2].norm():.4g}",
        "tables": {"B3 sampled against exact": rows},
    }


def soft_network(data: tuple[Tensor, Tensor], epochs: int, channels: int = 4) -> nn.Module:
    """A small trained network with soft stacks, in float64."""
    torch.manual_seed(0)
    net = bws.models.WSCNN(1, 10, channels, 4, 3, stack="dense").double()
    x, y = data[0].double(), data[1]
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(y)).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[index]), y[index]).backward()
            optimiser.step()
    return net


def _measured(
    net: nn.Module, data: tuple[Tensor, Tensor], curvature: str | bws.Curvature
) -> tuple[Tensor, Tensor, Tensor]:
    """The log evidence, its gradient in the log precisions, its gradient in the logits."""
    precisions = [t for n, t in net.named_parameters() if "log_precisions" in n]
    logits = bws.layers.structure(net)
    total = bws.log_evidence(net, (data[0].double(), data[1]), curvature=curvature).total
    gradients = torch.autograd.grad(total, [*precisions, *logits])
    count = len(precisions)
    return total.detach(), torch.stack(gradients[:count]), torch.cat([g.flatten() for g in gradients[count:]])


def _nats(
    found: list[tuple[Tensor, Tensor, Tensor]], exact: tuple[Tensor, Tensor, Tensor], data: int
) -> dict[str, Any]:
    values = torch.stack([f[0] for f in found]) - exact[0]
    spread = float(values.std())
    return {
        "bias, nats": float(values.mean()),
        "its error": spread / math.sqrt(len(found)),
        "sd, nats": spread,
        "bias / datum": float(values.mean()) / data,
        "sd / datum": spread / data,
    }


def _gradient(name: str, found: list[Tensor], exact: Tensor) -> dict[str, Any]:
    """‖mean - exact‖ and the root mean square distance from the mean, both relative to ‖exact‖."""
    values = torch.stack(found)
    mean = values.mean(0)
    spread = (values - mean).square().sum(-1).sum() / (len(found) - 1)
    return {
        f"{name}: bias": float((mean - exact).norm() / exact.norm()),
        f"{name}: sd": float(spread.sqrt() / exact.norm()),
    }
