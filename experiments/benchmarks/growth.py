"""How the exact pass grows with data, width, group and kernel, and where its time goes."""

import math
import statistics
from functools import partial
from typing import Any

import torch
from curvature import Job, Rows, evidence
from networks import Pair, images, plain_cnn, sharing_cnn, train
from timing import interleaved
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent

import bayesws as bws

# the swept size, and where the others stay
SWEEPS: dict[str, tuple[int, ...]] = {
    "N": (500, 1000, 2000, 4000),
    "width": (4, 8, 16, 32),
    "group size": (1, 2, 4, 8),
    "kernel size": (3, 5, 7),
}
CENTRE = {"N": 500, "width": 8, "group size": 4, "kernel size": 3}


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """B9: seconds of the exact pass over one size at a time, and the exponent of the power law fitted to them."""
    rows: Rows = []
    exponents: Rows = []
    for name, sizes in SWEEPS.items():
        sizes = sizes[:2] if quick else sizes
        jobs: dict[str, Job] = {str(size): _job(CENTRE | {name: size}) for size in sizes}
        medians = [statistics.median(times) for times in interleaved(jobs, min(repeats, 5)).values()]
        rows += [
            {"size": name, "value": size, "seconds": seconds} for size, seconds in zip(sizes, medians, strict=True)
        ]
        exponents.append(
            {"size": name, "exponent, all sizes": _exponent(sizes, medians)}
            | {"exponent, last two": _exponent(sizes[-2:], medians[-2:])}
        )
    return {
        "network": "WSCNN, two layers, fixed stack, shared only, images 1×28×28",
        "elsewhere": ", ".join(f"{name} {size}" for name, size in CENTRE.items()),
        "tables": {"B9 seconds of the exact pass": rows, "B9 fitted exponents": exponents},
    }


def profile(repeats: int, quick: bool) -> dict[str, Any]:
    """B9: the exact pass on the plain CNN by stage, shares of its time by torch.profiler. `repeats` is not used."""
    data, source = images(500 if quick else 2000)
    net = plain_cnn()
    train(net, data)
    evidence(net, data)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        evidence(net, data)
    sizes = _kernel_sizes(net)
    spent: dict[str, float] = {}
    for event in profiler.events() or ():
        stage = _stage(event, *sizes)
        spent[stage] = spent.get(stage, 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    rows = [
        {"stage": stage, "share, %": 100 * time / total, "ms": time / 1000}
        for stage, time in sorted(spent.items(), key=lambda item: -item[1])
    ]
    return {"network": "plain CNN", "data": f"{len(data[1])} images, {source}", "tables": {"B9 profile": rows}}


def _job(sizes: dict[str, int]) -> partial[bws.evidence.Evidence]:
    net = sharing_cnn(sizes["width"], sizes["group size"], sizes["kernel size"])
    data: Pair = images(sizes["N"])[0]
    return partial(evidence, net, data)


def _exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """The slope of log seconds over log size, by least squares."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds]).slope


def _kernel_sizes(net: nn.Module) -> tuple[set[int], set[int]]:
    """Lengths of what the kernels take in, and of what they give out; must not overlap to tell A from B."""
    kernels: list[Tensor] = [p.flatten(1) for p in net.parameters() if p.ndim > 1]
    fan_in, fan_out = {k.shape[1] for k in kernels}, {k.shape[0] for k in kernels}
    assert not fan_in & fan_out
    return fan_in, fan_out


def _stage(event: FunctionEvent, fan_in: set[int], fan_out: set[int]) -> str:
    """Which stage of the pass an operation belongs to: by what it is, and by the shapes it works on."""
    lineage, parent = {event.name}, event.cpu_parent
    while parent is not None:
        lineage.add(parent.name)
        parent = parent.cpu_parent
    if lineage & {"aten::linalg_eigvalsh", "aten::linalg_eigh"}:
        return "eigenvalues"
    if any(name.endswith("Backward0") and not name.startswith("autograd::") for name in lineage):
        return "output gradients"
    if lineage & {"aten::conv2d", "aten::linear", "aten::max_pool2d", "aten::relu"}:
        return "forward"
    if lineage & {"aten::im2col", "aten::unfold"}:
        return "A factors"
    shapes: Any = event.input_shapes  # typed as one shape, but is one for every argument
    lengths = {n for shape in shapes or () if isinstance(shape, list | tuple) for n in shape if isinstance(n, int)}
    if lengths & fan_in:
        return "A factors"
    if lengths & fan_out:
        return "B factors"
    return "copies" if event.name in ("aten::cat", "aten::copy_") else "other"
