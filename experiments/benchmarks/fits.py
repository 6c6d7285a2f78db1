"""What a fit by the evidence costs beside one by the task loss, the end of both included: seconds and peak memory."""

import gc
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from curvature import Rows
from networks import Pair, images
from timing import interleaved, largest_resident_size, ratio

import bayesws as bws

OBJECTIVES: dict[str, bws.objectives.Objective] = {
    "evidence": bws.objectives.ByEvidence(),
    "task loss": bws.objectives.TaskLoss(weight_decays=(1e-3,)),  # one: nothing to choose
}
DATA = (("digits", 1000, 300), ("28×28", 1000, 60))  # set, training images, epochs


def table(repeats: int, quick: bool) -> dict[str, Any]:
    """The default network on images of two sizes; ratios turn by turn, memory in processes of their own."""
    rows: Rows = []
    for name, count, epochs in DATA[: 1 if quick else None]:
        of = (name, 100 if quick else count, 4 if quick else epochs)
        jobs = {objective: partial(_fit, objective, *of) for objective in OBJECTIVES}
        seconds = interleaved(jobs, min(repeats, 2))
        peaks = {objective: _peak(objective, *of) for objective in OBJECTIVES}
        rows.append(
            dict(zip(("images", "training", "epochs"), of, strict=True))
            | {"evidence / task loss": ratio(seconds["evidence"], seconds["task loss"])}
            | {f"{objective}, MB": peak for objective, peak in peaks.items()}
        )
    return {"network": "WSCNN as it is: 8 channels × 4 quarter turns, two layers", "tables": {"fits": rows}}


def _fit(objective: str, name: str, count: int, epochs: int) -> None:
    data: Pair = bws.data.load("digits", train_size=count).train if name == "digits" else images(count)[0]
    torch.manual_seed(0)
    plan: dict[str, Any] = {"epochs": epochs, "every": max(1, epochs // 30), "progress": False, "keep_posterior": False}
    bws.fit(bws.models.WSCNN(), data, objective=OBJECTIVES[objective], **plan)


def _peak(*fit: Any) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak, fit)


def _measure_peak(objective: str, *of: Any) -> float:
    """MB by which the process's largest resident size grows while a fit is made."""
    torch.set_num_threads(1)
    _fit(objective, "digits", 20, 2)  # what a first call loads once for all
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the largest resident size counts anew
    before = largest_resident_size()
    _fit(objective, *of)
    return (largest_resident_size() - before) * 1024 / 1e6
