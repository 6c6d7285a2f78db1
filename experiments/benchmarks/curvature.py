"""Our Kronecker-factored evidence beside the peers', on a plain CNN and on a sharing one: time and value."""

import copy
import statistics
from collections.abc import Callable
from typing import Any

import peers
import torch
import torch.nn.functional as F
from networks import LinearTwin, Pair, images, plain_cnn, sharing_cnn, train
from timing import interleaved, ratio
from torch import nn

import bayesws as bws

BATCH = 250
TWIN_BATCH = 25  # the twin's fastest of 10, 25, 50 and 250: its inputs are G times as large and leave the cache
PEERS = {"CurvlinopsGGN": peers.curvlinops, "AsdlGGN": peers.asdl, "BackPackGGN": peers.backpack}
UNIT = "forward + backward"
EPOCH = "epoch of training (Adam)"
EXACT, SAMPLED = "bayesws, exact", "bayesws, one sample"
Job = Callable[[], object]
Rows = list[dict[str, Any]]


def plain(repeats: int, quick: bool) -> dict[str, Any]:
    """B1: one pass over all data on the plain CNN, beside the peers, training and one forward and backward."""
    data, source = images(500 if quick else 2000)
    net = plain_cnn()
    train(net, data)
    wide, wide_data = copy.deepcopy(net).double(), (data[0].double(), data[1])
    jobs: dict[str, Job] = {
        UNIT: sweep(net, data, step=False),
        EPOCH: sweep(net, data, step=True),
        EXACT: lambda: evidence(net, data),
        SAMPLED: lambda: evidence(net, data, bws.Curvature("kron", samples=1, seed=0)),
    }
    truth = float(evidence(wide, wide_data))
    values: Rows = [_value(EXACT, truth, truth, float(evidence(net, data)))]
    missing = []
    for name, peer in PEERS.items():
        try:
            exact = peer(net, data, BATCH)
        except peers.PeerMissing as error:
            missing.append(str(error))
            continue
        jobs[f"{name}, exact"] = exact
        values.append(_value(f"{name}, exact", truth, peer(wide, wide_data, BATCH)().total, exact().total))
        if name != "BackPackGGN":
            jobs[f"{name}, one sample"] = peer(net, data, BATCH, True)
    return {
        "network": "plain CNN, 5386 parameters",
        "data": f"{len(data[1])} images, {source}, batch {BATCH}",
        "missing": missing,
        "tables": {
            "B1 time": timed(jobs, repeats),
            "B1 log evidence, relative to ours in float64": values,
        },
    }


def sharing(repeats: int, quick: bool) -> dict[str, Any]:
    """B2: one pass on a WSCNN against Curvlinops on its linear twin, and the log determinant of every pathway."""
    data, source = images(250 if quick else 500)
    net = sharing_cnn()
    train(net, data, epochs=1)
    twin = LinearTwin(net)
    wide = copy.deepcopy(net).double()
    wide_twin, few = LinearTwin(wide), (data[0][:BATCH].double(), data[1][:BATCH])
    with torch.no_grad():  # the same function, or nothing below means anything
        torch.testing.assert_close(wide_twin(few[0]), wide(few[0]), rtol=1e-10, atol=1e-10)
    theirs = peers.curvlinops(wide_twin, few, BATCH)().log_determinants
    determinants: Rows = []
    for (pathway, part), their_value in zip(evidence(wide, few).by_pathway.items(), theirs, strict=True):
        assert part.occam is not None
        value = 2 * float(part.occam)
        determinants.append(
            {"pathway": pathway, "ours": value, "theirs": their_value, "relative": value / their_value - 1}
        )
    jobs: dict[str, Job] = {
        UNIT: sweep(net, data, step=False),
        f"{UNIT}, twin": sweep(twin, data, step=False),
        EPOCH: sweep(net, data, step=True),
        EXACT: lambda: evidence(net, data),
        SAMPLED: lambda: evidence(net, data, bws.Curvature("kron", samples=1, seed=0)),
        "CurvlinopsGGN on the twin, exact": peers.curvlinops(twin, data, BATCH),
        f"the same, batch {TWIN_BATCH}": peers.curvlinops(twin, data, TWIN_BATCH),
        "CurvlinopsGGN on the twin, one sample": peers.curvlinops(twin, data, BATCH, True),
    }
    weights = sum(p.numel() for p in twin.parameters())
    return {
        "network": f"WSCNN, 8 channels × 4, 3×3, two layers, fixed quarter turns, shared only, {weights} weights",
        "data": f"{len(data[1])} images, {source}, batch {BATCH}; log determinants: the first {BATCH}, float64",
        "tables": {
            "B2 time": timed(jobs, min(repeats, 5)),
            "B2 log determinants": determinants,
        },
    }


def evidence(net: nn.Module, data: Pair, curvature: str | bws.Curvature = "kron") -> bws.evidence.Evidence:
    """Our log evidence at prior precision 1, without a graph."""
    with torch.no_grad():
        return bws.log_evidence(net, data, curvature=curvature, prior=0.0, batch_size=BATCH)


def sweep(net: nn.Module, data: Pair, step: bool) -> Job:
    """Loss and gradients of all data in batches, on a copy: the unit; with an Adam step a batch: plain training."""
    net = copy.deepcopy(net)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    batches = list(zip(data[0].split(BATCH), data[1].split(BATCH), strict=True))

    def job() -> None:
        for x, y in batches:
            optimiser.zero_grad()
            F.cross_entropy(net(x), y).backward()
            if step:
                optimiser.step()

    return job


def timed(jobs: dict[str, Job], repeats: int) -> Rows:
    """Median seconds of every job, in units, in epochs, and what ours cost beside it: ratios with quartiles."""
    seconds = interleaved(jobs, repeats)
    against = {"÷ unit": UNIT, "÷ epoch": EPOCH}
    rows = []
    for name, times in seconds.items():
        row: dict[str, Any] = {"job": name, "seconds": statistics.median(times)}
        row |= {label: ratio(times, seconds[base]) for label, base in against.items()}
        row |= {f"{ours} ÷ this": ratio(seconds[ours], times) for ours in (EXACT, SAMPLED)}
        rows.append(row)
    return rows


def _value(name: str, truth: float, in_float64: float, in_float32: float) -> dict[str, Any]:
    relative = {"float64": in_float64 / truth - 1, "float32": in_float32 / truth - 1}
    return {"job": name, "log evidence, float64": in_float64} | relative
