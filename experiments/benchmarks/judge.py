"""The exact evidence in function space beside Kronecker factors: cost, memory, and what few columns a datum lose."""

import gc
import multiprocessing
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from curvature import UNIT, Job, Rows, evidence, sweep
from networks import images, train
from timing import interleaved, largest_resident_size, ratio
from torch import Tensor, nn

import bayesws as bws

WIDTHS = {"1k": 2, "11k": 14, "108k": 64}  # parameters, and channels of the first convolution
SIZES = (500, 1000, 2000, 5000, 10_000)
WIDE, FEWER = "108k", 2000  # whose sweeps over more data take minutes each
AFFORDABLE = 5000  # rows, or parameters, up to which all columns are taken
CURVATURES = {
    "one column": bws.Curvature("full", samples=1),
    "two columns": bws.Curvature("full", samples=2),
    "all columns": bws.Curvature("full"),
    "kron": bws.Curvature("kron"),
    "kron, one column": bws.Curvature("kron", samples=1),
}


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """Every pass in forward + backwards over the same data, its peak memory, an evaluation of γ; Occam factors."""
    times: Rows = []
    memory: Rows = []
    for parameters, width in list(WIDTHS.items())[: 1 if quick else None]:
        for count in (100,) if quick else [n for n in SIZES if parameters != WIDE or n <= FEWER]:
            size = {"parameters": parameters, "data": count}
            times.append(size | _times(width, count, min(repeats, 3)))
            memory.append(size | {f"{name}, MB": _peak(width, count, name) for name in _affordable(width, count)})
    occam = [_occam(count, quick) for count in ((100,) if quick else (200, 500, 1000))]
    return {
        "network": "plain CNN of two convolutions, images 1×28×28; Occam factors: WSCNN on 8×8 digits, trained",
        "data": images(1)[1],
        "tables": {"judge: time": times, "judge: peak memory": memory, "judge: Occam factors": occam},
    }


def cnn(width: int) -> nn.Sequential:
    """A plain CNN of 18 c² + 528 c + 10 parameters, c the width."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * width, 10),
    )


def _affordable(width: int, count: int) -> list[str]:
    """The curvatures that a network and its data can be held against."""
    parameters = sum(p.numel() for p in cnn(width).parameters())
    return [name for name in CURVATURES if name != "all columns" or min(parameters, 9 * count) <= AFFORDABLE]


def _times(width: int, count: int, repeats: int) -> dict[str, Any]:
    net, data = cnn(width), images(count)[0]
    train(net, data, epochs=1)
    names = _affordable(width, count)
    jobs: dict[str, Job] = {UNIT: sweep(net, data, step=False)}
    jobs |= {name: partial(evidence, net, data, CURVATURES[name]) for name in names}
    jobs["γ"] = partial(_gammas, torch.eye(min(count, 2000), dtype=torch.float64), len(list(net.parameters())))
    seconds = interleaved(jobs, repeats)
    row: dict[str, Any] = {f"{UNIT}, s": statistics.median(seconds[UNIT])}
    row |= {name: ratio(seconds[name], seconds[UNIT]) for name in names}
    return row | {"γ, one column, s": statistics.median(seconds["γ"])}


def _gammas(gram: Tensor, pathways: int) -> list[Tensor]:
    """What γ at other precisions takes: B = I + Σ δ⁻¹ K, its inverse and tr(B⁻¹ K), for Gram matrices of that size."""
    b = gram.clone()
    for _ in range(pathways):
        b = torch.addcmul(b, gram.new_ones(()), gram)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(b)).flatten()
    return [torch.dot(inverse, gram.flatten()) for _ in range(pathways)]


def _peak(width: int, count: int, name: str) -> float:
    """MB by which the process's largest resident size grows, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak, (width, count, name))


def _measure_peak(width: int, count: int, name: str) -> float:
    torch.set_num_threads(1)
    net, data = cnn(width), images(count)[0]
    evidence(cnn(1), (data[0][:4], data[1][:4]), CURVATURES[name])  # what a first call loads once for all
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the largest resident size counts anew
    before = largest_resident_size()
    evidence(net, data, CURVATURES[name])
    return (largest_resident_size() - before) * 1024 / 1e6


def _occam(count: int, quick: bool) -> dict[str, Any]:
    """Few columns a datum beside all, and blocks beside both: nats, on digits trained by the evidence; ten seeds."""
    torch.manual_seed(0)
    data = bws.data.load("digits", train_size=count).train
    net = bws.models.WSCNN(1, 10, 4, 4, 3, layers=2)
    epochs = 5 if quick else 300
    fit = bws.fit(net, data, epochs=epochs, keep_posterior=False, progress=False)

    def of(curvature: bws.Curvature) -> bws.evidence.Evidence:
        with torch.no_grad():
            return bws.log_evidence(fit.model.double(), (data[0].double(), data[1]), curvature=curvature, prior=prior)

    prior = {name: tensor.detach().double() for name, tensor in fit.prior.items()}
    exact = of(bws.Curvature("full"))
    drawn = {
        name: [float(of(bws.Curvature("full", seed=seed, samples=few)).occam) for seed in range(2 if quick else 10)]
        for name, few in {"one column": 1, "two columns": 2, "four columns": 4}.items()
    }
    halves = [bws.Curvature("full", samples=2, rows=count // 2, seed=seed) for seed in range(2 if quick else 10)]
    return {
        "data": count,
        "γ": sum(float(share.effective) for share in exact.by_pathway.values()),
        "all columns": float(exact.occam),
        **{name: f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}" for name, found in drawn.items()},
        "two columns, half of the data": statistics.mean(float(of(half).occam) for half in halves),
        "layer": float(of(bws.Curvature("layer")).occam),
        "kron": float(of(bws.Curvature("kron")).occam),
    }
