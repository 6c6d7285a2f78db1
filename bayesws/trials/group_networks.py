"""Networks that differ only in the groups their layers share over, as functions and as trials of a ranking."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayesws import data as data_sets
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import likelihood_named
from bayesws.io.provenance import versions
from bayesws.models import WSCNN
from bayesws.sharing.groups import Group, known_group
from bayesws.trials.comparable import MEANING
from bayesws.trials.starts import started
from bayesws.trials.store import as_file_name

WIDTH = 32  # with half of it the large groups have too few channels left to tell ten digits apart
KERNEL = 3
LIKELIHOOD = "classification"


@dataclass(frozen=True)
class GroupStart:
    """One start of a network over given groups, as a trial: its record is that of a `Start`.

    Attributes:
        label: what the ranking calls the network.
        groups: of its layers, see `group_network`.
        task: what the data is made into.
        data: further arguments of `bayesws.data.load`, but the seed, which is 0: all starts see the same data.
        seed: of the initial weights and of the order.
        width: feature maps of every layer.
        fit: further arguments of `fit`.
        evidence_curvature: of the evidence that ranks.
        curvature: of the steps; None is what `fit` takes by default.
        device: where to train.
        checkpoints: the folder with the fits' checkpoints; None keeps none.
    """

    label: str
    groups: tuple[str, ...]
    task: str
    data: dict[str, Any]
    seed: int
    width: int
    fit: dict[str, Any]
    evidence_curvature: Curvature
    curvature: Curvature | None = None
    device: str = "cpu"
    checkpoints: str | None = field(default=None)

    @property
    def name(self) -> str:
        """The trial's file, without its ending."""
        return f"{as_file_name(self.label)}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on, as it comes back from JSON."""
        given = {name: value for name, value in asdict(self).items() if name not in ("device", "checkpoints")}
        settings: dict[str, Any] = json.loads(json.dumps(given | {"meaning": MEANING}))
        return settings

    def run(self) -> dict[str, Any]:
        """Load the data, build the network, fit, compute the evidence.

        Raises:
            ValueError, FloatingPointError: what went wrong, and with which network.
        """
        images = data_sets.load(**self.data, task=self.task, seed=0)
        torch.manual_seed(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit's notes are stored, and shown at the end
            _, start = started(
                self.label,
                group_network(self.groups, images, self.width),
                images.train,
                likelihood_named(LIKELIHOOD),
                self.curvature,
                self.evidence_curvature,
                seed=self.seed,
                test=images.test,
                device=self.device,
                checkpoint=None if self.checkpoints is None else Path(self.checkpoints) / self.name,
                progress=False,
                keep_posterior=False,
                **self.fit,
            )
        return asdict(start) | {"version": versions()["bayesws"]}


def group_networks(
    images: data_sets.ImageData, groups: list[str], width: int = WIDTH, layers: int = 2
) -> dict[str, Any]:
    """A `WSCNN` for each group that shares over it and nothing else, all of equal width: functions by name.

    Channels × group size = `width` in every layer, so that all have the same feature maps and only the number of
    independent weights differs. They have no free pathway: with one, a network over the wrong group would buy itself
    out of it where it has to, and the evidence would answer another question. On upright digits (60 epochs, width 16)
    half turns with a free pathway come out 39 nats above no sharing; without it they are 100 below.

    A group can only win where its channels are enough for the task: at width 16 the eight motions of the square leave
    two, and quarter turns win even on images moved by all eight; at width 32 the eight do.

    Args:
        images: whose channels and classes the networks take.
        groups: names of known groups on 3×3 kernels; "none" shares over nothing.
        width: channels times group elements.
        layers: weight-sharing layers.

    Raises:
        ValueError: an unknown group, one named twice, a width that its size does not divide.
    """
    found: dict[str, Any] = {}
    for name in groups:
        _ = _known(name, width)  # fails here, not after the first fits
        if name in found:
            raise ValueError(f"group {name!r} is named twice: expected every group once")
        found[name] = partial(group_network, (name,) * layers, images, width)
    return found


def size_name(group: str, width: int, layers: int, widths: Sequence[int], depths: Sequence[int]) -> str:
    """What a ranking over several sizes calls a network: its group, and what of its size is not that of all.

    >>> size_name("flips", 32, 3, [32], [2, 3])
    'flips, 3 layers'
    """
    told = [f"{layers} layer{'s' * (layers > 1)}"] if len(depths) > 1 else []
    return ", ".join([group, *told, *([f"width {width}"] if len(widths) > 1 else [])])


def group_network(groups: tuple[str, ...], images: data_sets.ImageData, width: int = WIDTH) -> WSCNN:
    """A `WSCNN` with a known group of its own for every layer, that shares over these and nothing else.

    Args:
        groups: for every layer the name of a known group on 3×3 kernels; "none" shares over nothing.
        images: whose channels and classes the network takes.
        width: feature maps of every layer: channels times group elements.

    Raises:
        ValueError: an unknown group, a width that its size does not divide.
    """
    return WSCNN(
        in_channels=images.train[0].shape[1],
        num_classes=images.num_classes,
        hidden_channels=width,
        group_size=1,
        kernel_size=KERNEL,
        layers=len(groups),
        group=tuple(_known(name, width).name for name in groups),
        pathways=("shared",),
    )


def _known(name: str, width: int) -> Group:
    group = known_group("trivial" if name == "none" else name, KERNEL, KERNEL)
    if width % group.size:
        raise ValueError(f"width={width} with {name!r}, {group.size} elements: expected a multiple of its size")
    return group
