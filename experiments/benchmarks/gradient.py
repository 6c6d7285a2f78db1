"""What the gradient of the log evidence in a network's structure costs in time and memory, beside a detached pass."""

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accuracy import soft_network
from timing import interleaved, largest_resident_size, ratio
from torch import nn

import bayesws as bws

Problem = tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], str]
WAYS: dict[str, dict[str, Any]] = {
    "once": {"way": "once"},
    "twice": {"way": "twice"},
    "twice, one sample in the second pass": {"way": "twice", "second_samples": 1},
    "local": {"way": "local"},
}


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """B6: every way's time in detached passes, and its peak memory beyond the start in the detached pass's."""
    times, memory = [], []
    for kind in ("kron",) if quick else ("kron", "diag", "full"):
        problem = _problem(kind, quick)
        jobs: dict[str, Callable[[], object]] = {"detached": _detached(problem)}
        jobs |= {name: _gradient(problem, arguments) for name, arguments in WAYS.items()}
        seconds = interleaved(jobs, repeats)
        times.append({"curvature": kind} | {name: ratio(seconds[name], seconds["detached"]) for name in WAYS})
        peaks = {name: _peak(kind, quick, name) for name in ["detached", *WAYS]}
        memory.append(
            {"curvature": kind, "detached, MiB": peaks["detached"]}
            | {name: peaks[name] / peaks["detached"] for name in WAYS}
        )
    errors = [_errors(kind, quick) for kind in (("kron",) if quick else ("kron", "diag", "full"))]
    return {
        "network": "WSCNN, dense soft stacks, G = 4, random images, batch 250",
        "tables": {"B6: time, in detached passes": times, "B6: peak memory, in detached passes": memory}
        | {"B6: distance from central differences along five directions, relative (float64, trained digits)": errors},
    }


def _errors(kind: str, quick: bool) -> dict[str, Any]:
    """Every way's derivative along random directions of all logits and precisions, beside central differences."""
    count = 40 if quick else 100
    images, labels = bws.data.load("digits", train_size=count).train
    net = soft_network((images, labels), epochs=5 if quick else 60, channels=2)
    data = images.double(), labels
    found = {
        name: bws.evidence_gradient(net, data, curvature=bws.Curvature(kind), **arguments)[1]
        for name, arguments in WAYS.items()
    }
    parameters = dict(net.named_parameters())
    generator = torch.Generator().manual_seed(0)
    derivatives: dict[str, list[float]] = {name: [] for name in ["differences", *WAYS]}
    for _ in range(1 if quick else 5):
        along = {n: torch.randn(g.shape, generator=generator, dtype=g.dtype) for n, g in found["once"].items()}
        values = []
        with torch.no_grad():
            for step in (1e-4, -2e-4, 1e-4):  # there, across, and back again
                for name, direction in along.items():
                    parameters[name].add_(step * direction)
                values.append(float(bws.log_evidence(net, data, curvature=kind)))
        derivatives["differences"].append((values[0] - values[1]) / 2e-4)
        for way, gradients in found.items():
            derivatives[way].append(sum(float((gradients[n] * d).sum()) for n, d in along.items()))
    truth = torch.tensor(derivatives["differences"], dtype=torch.float64)
    return {"curvature": kind} | {
        name: float((torch.tensor(derivatives[name], dtype=torch.float64) - truth).norm() / truth.norm())
        for name in WAYS
    }


def _problem(kind: str, quick: bool) -> Problem:
    """Three layers on 28×28 images; two on smaller ones where rows of Jacobians are needed, or all of H."""
    torch.manual_seed(0)
    sizes = {"kron": (8, 3, 28, 500), "diag": (4, 2, 12, 250), "full": (2, 2, 12, 250)}
    channels, layers, side, count = sizes[kind]
    net = bws.models.WSCNN(1, 10, channels, 4, 3, layers, stack="dense")
    count = 100 if quick else count
    return net, (torch.randn(count, 1, side, side), torch.arange(count) % 10), kind


def _detached(problem: Problem) -> Callable[[], object]:
    net, data, kind = problem

    def run() -> object:
        with torch.no_grad():
            return bws.log_evidence(net, data, curvature=kind)

    return run


def _gradient(problem: Problem, arguments: dict[str, Any]) -> Callable[[], object]:
    net, data, kind = problem
    return lambda: bws.evidence_gradient(net, data, curvature=kind, **arguments)


def _peak(kind: str, quick: bool, name: str) -> float:
    """MiB by which the process's largest resident size grows, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak, (kind, quick, name))


def _measure_peak(kind: str, quick: bool, name: str) -> float:
    torch.set_num_threads(1)
    problem = _problem(kind, quick)
    net, (x, y), _ = problem
    run = _detached if name == "detached" else lambda p: _gradient(p, WAYS[name])
    run((net, (x[:4], y[:4]), kind))()  # what a first call loads once for all
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the largest resident size counts anew
    before = largest_resident_size()
    run(problem)()
    return (largest_resident_size() - before) / 2**10
