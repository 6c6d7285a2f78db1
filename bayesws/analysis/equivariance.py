"""How far is a layer, or a network up to a layer, from moving its outputs as its inputs are moved? Measured on data."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bayesws.data.geometry import rescale, rotate, shift
from bayesws.evidence.examples import TakenBy, inputs_of
from bayesws.evidence.networks import check_network_kind
from bayesws.io.arguments import choice, first_line, seed_of, shown, whole
from bayesws.io.json_files import Count, Measured
from bayesws.io.tables import table_by_layer
from bayesws.layers.contract import Joint, declare, is_within
from bayesws.layers.features import layer_features

Move = Callable[[Tensor], Tensor]
INSIDE = 0.999  # of a moved image of ones: what has not come in from outside
EXACT: dict[str, Move] = {
    "identity": lambda x: x,
    "quarter-turn": lambda x: x.rot90(1, (-2, -1)),
    "half-turn": lambda x: x.rot90(2, (-2, -1)),
    "flip": lambda x: x.flip(-1),
    "up-down-flip": lambda x: x.flip(-2),
    "transpose": lambda x: x.transpose(-2, -1),
}
RESAMPLED = ("rotate:DEGREES", "scale:FACTOR", "shift:FRACTION")


@dataclass(frozen=True)
class EquivarianceError:
    """What `equivariance_error` measured.

    Attributes:
        error: ε, 0 for exact equivariance, 1 for outputs that have nothing to do with each other.
        interval: central 95 % bootstrap interval over the data.
        transform: name of the transform.
        channels: "matched" (up to the best permutation of the channels) or "kept".
        examples: number of data that ε was measured on.
    """

    error: Measured
    interval: tuple[Measured, Measured]
    transform: str
    channels: str
    examples: Count


def equivariance_error(
    module: nn.Module,
    x: Any,
    transform: str | Move = "quarter-turn",
    *,
    channels: str = "matched",
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 250,
) -> EquivarianceError:
    """The measured equivariance error of a module, or of a network as a whole, under one transform T of its inputs.

    ε² = Σ_n ‖f(T x_n) - T' f(x_n)‖² / Σ_n (‖f(T x_n) - m‖² + ‖T' f(x_n) - m'‖²),   m, m' each channel's means

    T' moves the outputs' maps as T moves the images and, where channels are "matched", permutes the channels; outputs
    without maps (batch, features) are to stay as they are (invariance). The permutation is found by assignment on half
    of the data, with the means; ε is measured on the other half, so that it is not flattered. A group convolution's
    group axes count as channels: turning shifts them. Of transforms that resample (rotate, scale, shift) only what lies
    inside of both images counts (ε is NaN where nothing does); how a layer pads shows all the same.

    Args:
        module: takes x; put in eval mode, and back.
        x: (batch, channels, height, width), at least four; a tensor or a numpy array, in the type that `fit` gives it.
        transform: "quarter-turn", "half-turn", "flip", "up-down-flip", "transpose", "identity", "rotate:DEGREES",
            "scale:FACTOR", "shift:FRACTION" (to the right, of the width), or a function for images and maps alike.
        channels: "matched" or "kept".
        resamples: of the bootstrap.
        seed: of its draws, and of the split in halves.
        batch_size: how many data at once; does not change the result.

    >>> moves_along = nn.Conv2d(1, 3, 1)  # a kernel of one position turns into itself
    >>> round(equivariance_error(moves_along, torch.randn(8, 1, 4, 4)).error, 4)
    0.0

    Raises:
        ValueError: an unknown transform, images that it does not fit, too few data, outputs that do not keep their
            shape.
    """
    (found,) = equivariance_errors(
        module, x, transform, [""], channels=channels, resamples=resamples, seed=seed, batch_size=batch_size
    ).values()
    return found


def equivariance_errors(
    net: nn.Module,
    x: Any,
    transform: str | Move = "quarter-turn",
    layers: Sequence[str] | None = None,
    *,
    channels: str = "matched",
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 250,
) -> dict[str, EquivarianceError]:
    """`equivariance_error` of a network up to each of its layers, by the layers' names.

    Args:
        net: the network.
        layers: names of modules, "" for the network itself; None takes every module that is called and has a matrix or
            a kernel of its own (no normalisation), and of containers that are one layer, such as `Branches`, the whole.
        x, transform, channels, resamples, seed, batch_size: as for `equivariance_error`.

    Raises:
        ValueError: as `equivariance_error`; a name that is no module, a module that was not called.
    """
    check_network_kind(net)
    choice("channels", channels, ("matched", "kept"))
    resamples, seed, batch_size = whole("resamples", resamples), seed_of(seed), whole("batch_size", batch_size)
    x = TakenBy(net)(inputs_of(x, "images"))
    if x.ndim != 4 or len(x) < 4:
        raise ValueError(f"images of shape {tuple(x.shape)}: expected (batch, channels, height, width), at least four")
    modules = dict(net.named_modules())
    if layers is None:
        own = _layers_of_any(net)
        called = layer_features(net, own, x[:1])
        layers = [name for name in own if name in called]
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(n, str) for n in layers):
        raise ValueError(f"layers={shown(layers)}: expected a list of names of modules, or None")
    if unknown := next((name for name in layers if name not in modules), None):
        raise ValueError(
            f"layer {shown(unknown)}: expected modules of the network, such as {', '.join(list(modules)[1:4])}"
        )
    move, label = (transform, getattr(transform, "__name__", "function")) if callable(transform) else _named(transform)
    if _moved(move, label, x[:1]).shape != x[:1].shape:
        raise ValueError(f"{label} of images of {x.shape[-2]}×{x.shape[-1]}: expected square ones; crop or pad them")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    halves = x[order].tensor_split(2)
    sums = {name: _Comparison(move, channels == "matched") for name in layers}
    for learn, half in zip((True, False), halves, strict=True):
        for images in half.split(batch_size):
            before, after = layer_features(net, layers, images), layer_features(net, layers, move(images))
            for name in layers:
                if name not in before:
                    raise ValueError(f"layer {name!r} was not called: expected one that the network uses")
                sums[name].add(name, before[name], after[name], learn)
        if learn:
            for comparison in sums.values():
                comparison.match()
    return {name: comparison.result(label, resamples, seed) for name, comparison in sums.items()}


def _layers_of_any(net: nn.Module) -> list[str]:
    """Names of what is a layer in any torch network: it has a matrix, or it is one layer made of those within it."""
    found: list[str] = []
    joint: str | None = None
    for name, module in net.named_modules():
        own = list(module.parameters(recurse=False))
        if joint is not None and is_within(name, joint):
            continue
        if not own and isinstance(declare(module), Joint):
            joint = name
            found.append(name)
        elif any(p.ndim > 1 for p in own):
            found.append(name)
    return found


def error_table(errors: Mapping[str, Mapping[str, EquivarianceError]]) -> Table:
    """Every layer's error and interval, a column a transform.

    Args:
        errors: by transform and layer.
    """
    title = "Equivariance error: 0 moves as its input, 1 is unrelated; 95 % interval"
    table = table_by_layer(title, "layer", errors)
    for layer in next(iter(errors.values())):
        cells = (rows[layer] for rows in errors.values())
        table.add_row(layer or "(network)", *(_shown(cell) for cell in cells))
    return table


def _shown(row: EquivarianceError) -> str:
    if math.isnan(row.error):
        return "–"
    low, high = (f"{bound:.2f}".removeprefix("0") for bound in row.interval)
    return f"{row.error:.2f} {low}–{high}"


def _moved(move: Move, label: str, x: Tensor) -> Tensor:
    """One image, moved: whether a function of the caller's takes images, and gives images."""
    try:
        moved = move(x)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = first_line(error)
        raise ValueError(f"{label} does not take images of shape {tuple(x.shape)}: {reason}") from error
    if not isinstance(moved, Tensor):
        raise ValueError(f"{label} gives a {type(moved).__name__}: expected images of shape {tuple(x.shape)}")
    return moved


def _named(transform: str) -> tuple[Move, str]:
    """The transform of that name."""
    if not isinstance(transform, str):
        raise ValueError(f"transform={shown(transform)}: expected a name, or a function of images")
    kind, _, amount = transform.partition(":")
    if transform in EXACT:
        return EXACT[transform], transform
    try:
        value = float(amount)
    except ValueError:
        value = math.nan
    if kind in ("rotate", "scale", "shift") and math.isfinite(value) and (kind != "scale" or value > 0):
        if kind == "rotate":
            return lambda x: rotate(x, torch.full((len(x),), value)), transform
        if kind == "scale":
            return lambda x: rescale(x, torch.full((len(x),), value)), transform
        return lambda x: _shifted(x, value * x.shape[-1]), transform
    raise ValueError(f"transform {shown(transform)}: expected one of {', '.join([*EXACT, *RESAMPLED])}")


def _shifted(x: Tensor, pixels: float) -> Tensor:
    """To the right by any number of pixels: linear between the two whole ones."""
    whole = math.floor(pixels)
    right = torch.full((len(x),), whole)
    down = torch.zeros_like(right)
    part = pixels - whole
    return (1 - part) * shift(x, down, right) + part * shift(x, down, right + 1)


class _Comparison:
    """Sums over the data of one layer's outputs: first those that match channels, then those that make the error."""

    def __init__(self, move: Move, matched: bool) -> None:
        self.move, self.matched = move, matched
        self.count = 0
        self.means: tuple[Tensor, Tensor] | None = None
        self.cross: Tensor | None = None
        self.partner: Tensor | None = None
        self.kept = True
        self.positions = 0
        self.residuals: list[Tensor] = []
        self.scales: list[Tensor] = []

    def add(self, name: str, before: Tensor, after: Tensor, learn: bool) -> None:
        """Take in a batch: outputs of the images, and of the moved images."""
        if before.ndim < 2 or before.shape != after.shape:
            raise ValueError(
                f"layer {name!r} gives {tuple(before.shape)}, of moved images {tuple(after.shape)}: expected one shape"
            )
        moved, actual = self._maps(before, after)
        if learn:
            self._learn(moved, actual)
        else:
            self._measure(moved, actual)

    def _maps(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """T' f(x) and f(T x), (batch, channels, positions that count)."""
        if before.ndim < 4:
            return before.double().flatten(1).unsqueeze(-1), after.double().flatten(1).unsqueeze(-1)
        self.kept = not self.matched
        maps, actual = (y.double().flatten(1, -3) for y in (before, after))
        inside = (self.move(torch.ones_like(maps[:1, :1])) > INSIDE).flatten()
        moved = self.move(maps)
        if moved.shape != actual.shape:
            raise ValueError(f"maps of {maps.shape[-2]}×{maps.shape[-1]}: expected square ones for this transform")
        return moved.flatten(2)[..., inside], actual.flatten(2)[..., inside]

    def _learn(self, moved: Tensor, actual: Tensor) -> None:
        sums = moved.sum((0, 2)), actual.sum((0, 2))
        cross = None if self.kept else torch.einsum("ncp,ndp->cd", actual, moved)
        if self.means is None:
            self.means, self.cross = sums, cross
        else:
            self.means = self.means[0] + sums[0], self.means[1] + sums[1]
            self.cross = None if cross is None or self.cross is None else self.cross + cross
        self.count += moved.shape[0] * moved.shape[2]

    def match(self) -> None:
        """End of the first half: the means, and the permutation that leaves the least squared difference."""
        assert self.means is not None
        self.means = self.means[0] / max(self.count, 1), self.means[1] / max(self.count, 1)
        if self.cross is not None:
            # Σ (a_i - z_j)² is least, over permutations, where Σ a_i z_j is largest
            _, partner = linear_sum_assignment(self.cross.cpu().numpy(), maximize=True)
            self.partner = torch.from_numpy(partner).to(self.cross.device)

    def _measure(self, moved: Tensor, actual: Tensor) -> None:
        assert self.means is not None
        mean, other = self.means
        self.positions = moved.shape[2]
        if self.partner is not None:
            moved, mean = moved[:, self.partner], mean[self.partner]
        self.residuals.append((actual - moved).square().sum((1, 2)))
        scale = (actual - other[:, None]).square().sum((1, 2)) + (moved - mean[:, None]).square().sum((1, 2))
        self.scales.append(scale)

    def result(self, label: str, resamples: int, seed: int) -> EquivarianceError:
        """ε and its bootstrap interval."""
        residuals, scales = (torch.cat(parts).cpu().numpy() for parts in (self.residuals, self.scales))
        channels = "kept" if self.kept else "matched"
        if not self.positions:
            return EquivarianceError(math.nan, (math.nan, math.nan), label, channels, len(scales))
        draws = np.random.default_rng(seed).integers(len(scales), size=(resamples, len(scales)))
        several = _ratio(residuals[draws].sum(1), scales[draws].sum(1))
        low, high = np.quantile(several, [0.025, 0.975])
        error = float(_ratio(residuals.sum(), scales.sum()))
        return EquivarianceError(error, (float(low), float(high)), label, channels, len(scales))


def _ratio(residual: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """√(residual / scale); zero where both are: outputs that never change are equivariant."""
    return np.sqrt(np.divide(residual, scale, out=np.zeros_like(scale), where=scale > 0))
