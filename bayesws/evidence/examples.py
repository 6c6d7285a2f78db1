"""Examples as people hand them over: x and y out of pairs, mappings and longer tuples, and x as a network takes it.

What comes is a pair (x, y); a mapping with one of INPUTS and one of TARGETS among its keys, the others left out; or a
tuple (x, y, ...), whose first two are taken, as long as nothing beside y would do as targets, too: (x, weight, y) is
never mistaken for it. Numbers are tensors or numpy arrays.

Every number goes to a network in the type of its weights where the network does not take it as it is; bytes (uint8) are
then divided by 255, as torchvision's ToTensor and our .npz files have it. So fit, predict, log_evidence and the command
line see the same images. Targets that are booleans become 0 and 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.networks import FAILURES
from bayesws.io.arguments import numbers
from bayesws.layers.contract import evaluating

INPUTS = ("x", "input", "inputs", "image", "images", "img", "features", "pixel_values")
TARGETS = ("y", "target", "targets", "label", "labels")
TAKE_TWO = "give the loader a collate_fn, or the Dataset items, of x and y alone"


def parts_of(given: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """x, y and what stands beside them, of one example, of a batch, or of all data.

    Raises:
        ValueError: what has no x and y, or several.
    """
    if hasattr(given, "_asdict") and _named(given._asdict()):  # a named tuple whose names tell
        given = given._asdict()
    if isinstance(given, Mapping):
        found = _named(given)
        if not found:
            raise ValueError(
                f"a mapping with {', '.join(map(str, given)) or 'no keys'}: expected one of {', '.join(INPUTS)} and "
                f"one of {', '.join(TARGETS)}; else {TAKE_TWO}"
            )
        return given[found[0]], given[found[1]], ()
    if not isinstance(given, tuple | list) or len(given) < 2:
        came = f"{type(given).__name__} of {len(given)}" if isinstance(given, tuple | list) else type(given).__name__
        raise ValueError(
            f"data of type {came}: expected a pair of tensors (x, y), a Dataset or a DataLoader of pairs; {TAKE_TWO}"
        )
    x, y, *beside = given
    return x, y, tuple(beside)


def _named(given: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    """The keys of x and of y, where there is one of each."""
    names = {str(key).lower(): key for key in given}
    found = [[names[name] for name in known if name in names] for known in (INPUTS, TARGETS)]
    return (found[0][0], found[1][0]) if [len(keys) for keys in found] == [1, 1] else None


def inputs_of(given: Any, what: str = "inputs") -> Tensor:
    """x, (batch, ...), to be looked at.

    Raises:
        ValueError: see `numbers`; no data at all, NaN and infinite values.
    """
    x = numbers(what, given)
    if not x.numel():
        raise ValueError(f"{what} of shape {tuple(x.shape)}: expected at least one example that is not empty")
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise ValueError(f"{what} hold {int((~torch.isfinite(x)).sum())} NaN or infinite values")
    return x


def targets_of(given: Any) -> Tensor:
    """y, (batch, ...); booleans as 0 and 1, short integers as long ones.

    Raises:
        ValueError: see `numbers`.
    """
    y = numbers("targets", given)
    return y if y.is_floating_point() or y.dtype in (torch.int64, torch.int32, torch.uint8) else y.long()


def check_lengths(x: Tensor, y: Tensor) -> None:
    """Raise ValueError for x and y of different lengths."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} inputs and {len(y)} targets: expected as many of each")


def could_be_targets(beside: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of what stands beside (x, y), the numbers: what is text, a path or None is no target."""
    return tuple(part for part in beside if isinstance(part, Tensor | np.ndarray) and part.ndim)


def would_do(likelihood: Likelihood, outputs: Tensor, beside: tuple[Any, ...]) -> set[int]:
    """Which parts of a batch, counted from 0, stand beside (x, y) and would do as its targets as well."""
    return {place for place, part in enumerate(beside, 2) if _takes(likelihood, outputs, part)}


def _takes(likelihood: Likelihood, outputs: Tensor, part: Any) -> bool:
    try:
        likelihood.check(outputs, targets_of(part).to(outputs.device))
    except ValueError:
        return False
    return True


class TakenBy:
    """x as a network takes it: as it is where the network runs on it, else in the type of the weights, bytes / 255.

    Args:
        net: the network; None takes everything as it is.
    """

    def __init__(self, net: nn.Module | None) -> None:
        self._net = net
        self._runs: dict[torch.dtype, bool] = {}  # whether the network takes that type itself

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, ...) to the same shape, on the same device."""
        if self._net is None:
            return x
        dtype = next((p.dtype for p in self._net.parameters() if p.is_floating_point()), x.dtype)
        if x.dtype == dtype:
            return x
        if x.dtype not in self._runs and len(x):
            self._runs[x.dtype] = runs_on(self._net, x[:2])
        if self._runs.get(x.dtype, True):
            return x
        return as_float(x, dtype)


def as_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a floating type; bytes from [0, 255] to [0, 1].

    >>> as_float(torch.tensor([0, 51, 255], dtype=torch.uint8), torch.float32)
    tensor([0.0000, 0.2000, 1.0000])
    """
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


@torch.no_grad()
def runs_on(net: nn.Module, x: Tensor) -> bool:
    """Whether a network takes x as it is."""
    try:
        with evaluating(net):
            place = next((p.device for p in net.parameters()), x.device)
            net(x.to(place, copy=True))
    except (ValueError, *FAILURES):
        return False
    return True
