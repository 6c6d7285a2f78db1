"""What a network costs to use: with its sharing layers, and hardened to plain modules."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from curvature import Job, Rows
from networks import images
from timing import interleaved, ratio
from torch import Tensor, nn

import bayesws as bws

BATCHES = (1, 250)


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """C6: share a plain network, fit it, harden it, export and reload it: outputs and times; and times of a WSCNN."""
    (x, y), source = images(250)
    rows: Rows = []
    for name, net in (("shared plain CNN", _shared_and_fitted(x, y)), *_sharing_networks()):
        hard = bws.harden(net, x[:2])
        again = _reloaded(hard, x[:2])
        with torch.no_grad():
            off = float((again(x) - net(x)).abs().max() / net(x).abs().max())
        row: dict[str, Any] = {"network": name, "largest relative difference after reloading": off}
        for batch in BATCHES[:1] if quick else BATCHES:
            jobs: dict[str, Job] = {
                "sharing": partial(_run, net, x[:batch], 250 // batch),
                "hardened": partial(_run, hard, x[:batch], 250 // batch),
            }
            times = interleaved(jobs, repeats)
            row[f"hardened / sharing, batch {batch}"] = ratio(times["hardened"], times["sharing"])
        rows.append(row)
    return {"data": source, "tables": {"C6 hardened networks": rows}}


def _shared_and_fitted(x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    shared = bws.share(plain, group_size=4)
    return bws.fit(shared, (x, y), epochs=5, progress=False, keep_posterior=False).model


def _sharing_networks() -> list[tuple[str, nn.Module]]:
    torch.manual_seed(0)
    make = partial(bws.models.WSCNN, hidden_channels=16, layers=3)
    return [("WSCNN, fixed stack", make().eval()), ("WSCNN, soft stack", make(stack="dense").eval())]


def _reloaded(hard: nn.Module, example: Tensor) -> nn.Module:
    batch = torch.export.Dim("batch")
    program = torch.export.export(hard, (example,), dynamic_shapes=({0: batch},))
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, Path(folder) / "net.pt2")
        return torch.export.load(Path(folder) / "net.pt2").module()


@torch.no_grad()
def _run(net: nn.Module, x: Tensor, times: int) -> None:
    for _ in range(times):
        net(x)
