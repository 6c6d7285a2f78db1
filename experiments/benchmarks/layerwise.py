"""What the layers of `LayerwiseNet` cost: a step on the task loss and a pass for the evidence, time and peak memory.

Networks of eight blocks of width 2 on images of 3×32×32, one batch of 128, float32. A step is forward and backward; a
pass is `log_evidence` with Kronecker factors of one sampled column. A dense map of all positions (fc) is the twin
that f-fc and s-fc do without; "fc+conv less fc" is a network whose dense maps were taken out as dead.
"""

import gc
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from curvature import Job
from timing import interleaved, largest_resident_size, ratio
from torch import Tensor, nn

import bayesws as bws

ALONE = ("conv", "s-conv", "fc", "f-fc", "s-fc")
BLOCKS = (*ALONE, "fc+conv", "fc+conv less fc", "f-fc+conv", "s-fc+s-conv", "gconv+conv+f-fc")
WIDTH, SIDE, IMAGES = 2, 32, 128
CURVATURE = bws.Curvature("kron", samples=1)


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """D6: ratios to the step of conv and of fc, with quartiles; memory beyond what the network was built with."""
    side, x, y = (8, *batch(8)) if quick else (SIDE, *batch(SIDE))
    networks = {blocks: network(blocks, side) for blocks in BLOCKS}
    jobs: dict[str, Job] = {f"step {blocks}": partial(step, net, x, y) for blocks, net in networks.items()}
    jobs |= {f"pass {blocks}": partial(evidence, net, x, y) for blocks, net in networks.items()}
    seconds = interleaved(jobs, repeats)
    rows = [
        {
            "blocks": blocks,
            "weights": sum(p.numel() for p in net.parameters()),
            "step / conv's": ratio(seconds[f"step {blocks}"], seconds["step conv"]),
            "step / fc's": ratio(seconds[f"step {blocks}"], seconds["step fc"]),
            "pass / own step": ratio(seconds[f"pass {blocks}"], seconds[f"step {blocks}"]),
            "step, MB": peak("step", blocks, side),
            "pass, MB": peak("evidence", blocks, side),
        }
        for blocks, net in networks.items()
    ]
    return {"tables": {f"D6 LayerwiseNet, width {WIDTH}, {IMAGES} images of {side}×{side}": rows}}


def network(blocks: str, side: int) -> nn.Module:
    """In training mode; of "a+b less a" the branches a are taken out."""
    torch.manual_seed(0)
    branches, _, out = blocks.partition(" less ")
    net = bws.models.LayerwiseNet(branches, width=WIDTH, size=side)
    for block in net.modules():
        if out and isinstance(block, bws.layers.Branches):
            block.prune(out)
    return net


def batch(side: int) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    torch.manual_seed(1)
    return torch.rand(IMAGES, 3, side, side), torch.arange(IMAGES) % 10


def step(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Forward and backward of the task loss."""
    net.zero_grad(set_to_none=True)
    with bws.layers.computed_once(net):
        nn.functional.cross_entropy(net(x), y).backward()


def evidence(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """One pass."""
    bws.log_evidence(net, (x, y), curvature=CURVATURE)


def peak(job: str, blocks: str, side: int) -> float:
    """MB that a job takes beyond its network and data, in a process of its own (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (job, blocks, side))


def _measured(job: str, blocks: str, side: int) -> float:
    torch.set_num_threads(1)
    run = {"step": step, "evidence": evidence}[job]
    small = network("conv", 8)
    run(small, *batch(8))  # whatever a first call loads
    net, (x, y) = network(blocks, side), batch(side)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the largest resident size counts anew
    before = largest_resident_size()
    run(net, x, y)
    return (largest_resident_size() - before) * 1024 / 1e6
