"""How much of a trained convolution's weights would a shared pathway explain? Orbits, held out from their search."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor, nn

from bayesws.analysis.channel_correlation import input_correlations
from bayesws.analysis.channel_matching import cycles, matching, random_matching
from bayesws.analysis.equivariance import EXACT, Move
from bayesws.analysis.orbits import Products, products
from bayesws.evidence.examples import TakenBy, inputs_of
from bayesws.evidence.networks import check_network_kind
from bayesws.io.arguments import numbers, seed_of, shown, whole
from bayesws.io.json_files import Count, Measured
from bayesws.io.tables import table_by_layer

ORDERS = {"quarter-turn": 4, "half-turn": 2, "flip": 2, "up-down-flip": 2, "transpose": 2}
FOLDS = 4
BALANCING = 20  # rounds; a thousandth is left after a few
RANDOM_PAIRINGS = 40
CONVINCING = math.log(20)  # nats


@dataclass(frozen=True)
class OrbitDecomposition:
    """How much of one convolution's weights a shared pathway over one transform's orbits explains.

    Attributes:
        explained: ρ, the intraclass correlation of the weights of an orbit, posterior median; NaN if not measured.
        interval: central 95 % credible interval of ρ.
        evidence: log evidence of sharing with unknown ρ against ρ = 0, in nats; below zero it speaks against sharing.
        chance: what 95 % of random pairings of the channels stay below.
        transform: its name.
        compared: number of weights in orbits of more than one.
        partner: p, for each output channel the one that it becomes; found on all of the weights, for orientation.
    """

    explained: Measured
    interval: tuple[Measured, Measured]
    evidence: Measured
    chance: Measured
    transform: str
    compared: Count
    partner: tuple[int, ...] = field(repr=False)

    @property
    def shares(self) -> bool:
        """Whether the evidence is convincing (20 to 1) and ρ beyond chance."""
        return self.evidence > CONVINCING and self.interval[0] > self.chance

    def orbits(self) -> dict[int, int]:
        """Number of orbits of output channels, by their size."""
        sizes = [len(cycle) for cycle in cycles(self.partner)]
        return {size: sizes.count(size) for size in sorted(set(sizes))}


def orbit_decomposition(
    weight: Float[Tensor, "out in height width"],
    transform: str = "quarter-turn",
    inputs: Tensor | None = None,
    *,
    groups: int = 1,
    seed: int = 0,
) -> OrbitDecomposition:
    """The orbits of a convolution's weights under a transform, and how much of the weights they share.

    A layer commutes with a transform T, up to the order of its channels, where W[c, i, n] = W[p(c), q(i), t(n)]: T
    moves the kernel's positions by t, input channels by q and output channels by p. The triples (c, i, n) then fall
    into orbits of weights, for which the layer's own prior, W_g = R_g w + v_g, says N(0, s [(1-ρ) I + ρ 11ᵀ]):
    ρ is the sharing strength, the fraction of the weights' variance that the shared pathway explains. Its likelihood is
    closed (see `orbits.Sums`), its prior uniform. Weights that are alone in their orbit, as the middle of a kernel that
    is turned into itself, say nothing.

    The p that suits the weights best finds likeness even in noise, so ρ is never measured on weights that chose p: the
    orbits of (i, n) are dealt into four folds, p is found on three and ρ measured on the fourth, four times. A wrong p
    only lowers ρ, so that ρ is a lower bound where few weights choose among many channels (first layers). Filters, and
    input channels, are scaled to one norm: the next layer, or a normalisation, undoes a channel's scale, and unequal
    ones would make noise look convincing. A structure that any pairing has, as kernels that are all alike, shows in
    `chance`. The evidence is against weights that are independent: where another transform ties them (as turns do in a
    group network), a small ρ of this one may be an echo of that, and the transform with the highest evidence counts.

    Args:
        weight: W, as torch.nn.Conv2d has it.
        transform: "quarter-turn", "half-turn", "flip", "up-down-flip" or "transpose".
        inputs: q as (in,) integers, where each input channel goes, q applied as often as the transform's order the
            identity; None for the channels of images, which stay. `orbit_decompositions` finds it.
        groups: of the convolution; one filter a channel (depthwise) has p = q and needs no search; others between are
            not measured.
        seed: of the folds and of the random pairings.

    Raises:
        ValueError: an unknown transform, a weight that is no finite (out, in, height, width), or not square where the
            transform needs it; a q that is no permutation of that order.

    References: Fisher (1925), intraclass correlation; MacKay (1992), evidence.
    """
    order, move = _transform(transform)
    groups, seed, weight = whole("groups", groups), seed_of(seed), inputs_of(weight, "weights")
    if weight.ndim != 4 or not torch.isfinite(weight).all():
        raise ValueError(f"weight of shape {tuple(weight.shape)}: expected finite values (out, in, height, width)")
    positions = move(torch.arange(weight[0, 0].numel()).reshape(weight.shape[2:]))
    if positions.shape != weight.shape[2:]:
        raise ValueError(f"{transform} of a {weight.shape[2]}×{weight.shape[3]} kernel: expected a square one")
    count = weight.shape[1] * groups
    q = torch.arange(count) if inputs is None else numbers("inputs", inputs).cpu()
    if q.is_floating_point() or q.dtype == torch.bool:
        raise ValueError(f"inputs of type {q.dtype}: expected a permutation of {count} channels, integers")
    q = q.long()
    if q.shape != (count,) or not torch.equal(_power(q, order), torch.arange(count)):
        raise ValueError(f"inputs: expected a permutation of {count} channels that {order} times over is the identity")
    depthwise = _is_depthwise(weight, groups)
    if groups > 1 and not depthwise:
        return _not_measured(transform)
    w = _balanced(weight.detach().double().cpu().flatten(2)).flatten(1)
    within = torch.zeros(1, dtype=torch.int64) if depthwise else q
    action = (within[:, None] * len(positions.flatten()) + positions.flatten()).flatten()
    generator = torch.Generator().manual_seed(seed)
    folds = torch.zeros_like(action) if depthwise else _folds(action, order, generator)
    parts = products(w, action, order, folds)
    if depthwise:
        found = [q.numpy()]
    elif len(parts) < 2:
        return _not_measured(transform)
    else:
        found = [matching(_scores(parts[:f] + parts[f + 1 :]), order) for f in range(len(parts))]
    sums = reduce(add, (part.sums(p) for part, p in zip(parts, found, strict=True)))
    if not sums.compared():
        return _not_measured(transform)
    explained, interval, evidence = sums.posterior()
    several = [random_matching(len(w), order, generator) for _ in range(RANDOM_PAIRINGS)]
    by_chance = [reduce(add, (part.sums(p) for part in parts)).posterior()[0] for p in several]
    chance = float(np.quantile(by_chance, 0.95))
    partner = found[0] if depthwise else matching(_scores(parts), order)
    return OrbitDecomposition(
        explained, interval, evidence, chance, transform, sums.compared(), tuple(int(c) for c in partner)
    )


def orbit_decompositions(
    net: nn.Module, x: Tensor, transform: str = "quarter-turn", *, seed: int = 0, batch_size: int = 50
) -> dict[str, OrbitDecomposition]:
    """`orbit_decomposition` of every torch.nn.Conv2d of a network, by its name.

    How a transform permutes a layer's input channels, q, is read from the data: the channels of T x and of x, moved,
    are matched by their correlation, which asks nothing of the layer's own weights and holds for chains, sums and
    concatenations alike. Input channels that never vary (dead ones) have no q and are left out with their weights.

    Args:
        net: any torch network; put in eval mode, and back.
        x: images (batch, channels, height, width), at least two; a few hundred are enough.
        transform, seed: as for `orbit_decomposition`.
        batch_size: how many images at once.

    Raises:
        ValueError: as `orbit_decomposition`; a network without a torch.nn.Conv2d, images that do not fit.
    """
    check_network_kind(net)
    order, move = _transform(transform)
    seed, batch_size, x = seed_of(seed), whole("batch_size", batch_size), TakenBy(net)(inputs_of(x, "images"))
    if x.ndim != 4 or len(x) < 2:
        raise ValueError(
            f"images of shape {tuple(x.shape)}: expected finite (batch, channels, height, width), at least two"
        )
    if move(x[:1]).shape != x[:1].shape:
        raise ValueError(
            f"{transform} of images of {x.shape[-2]}×{x.shape[-1]}: expected square ones; crop or pad them"
        )
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    if not layers:
        raise ValueError("a network without a torch.nn.Conv2d: nothing to decompose; bws.harden makes plain layers")
    likeness = input_correlations(net, list(layers), x, move, order, batch_size)
    found = {}
    for name, alike in likeness.items():
        weight, groups = layers[name].weight, layers[name].groups
        alive, correlation = alike.correlation()
        if move(weight).shape != weight.shape or not len(alive):
            found[name] = _not_measured(transform)
            continue
        q = torch.from_numpy(matching(correlation, order))
        if groups == 1:
            weight = weight[:, alive]
        elif _is_depthwise(weight, groups):
            weight, groups = weight[alive], len(alive)
        else:
            q = torch.arange(len(weight[0]) * groups)
        found[name] = orbit_decomposition(weight, transform, q, groups=groups, seed=seed)
    return found


def decomposition_table(decompositions: Mapping[str, Mapping[str, OrbitDecomposition]]) -> Table:
    """What a shared pathway would explain of each convolution, by transform, and how sure the best of them is.

    Args:
        decompositions: by transform and layer.
    """
    title = "Weights that a shared pathway would explain: ρ; of the best (*) interval, chance and evidence"
    table = table_by_layer(title, "convolution", (*decompositions, "95 % interval", "chance", "nats"))
    for layer in next(iter(decompositions.values()), {}):
        rows = [of_transform[layer] for of_transform in decompositions.values()]
        best = best_decomposition(rows)
        rhos = ["– " if math.isnan(row.explained) else f"{row.explained:.2f}{' *'[row is best]}" for row in rows]
        sure = ["–", "–", "–"]
        if best is not None:
            low, high = best.interval
            sure = [f"{low:.2f}–{high:.2f}", f"{best.chance:.2f}", f"{best.evidence:+.0f}"]
        table.add_row(layer or "(network)", *rhos, *sure)
    return table


def best_decomposition(rows: Iterable[OrbitDecomposition]) -> OrbitDecomposition | None:
    """The one with the highest evidence of those that are convincing and beyond chance; None where none is."""
    return max((row for row in rows if row.shares), key=lambda row: row.evidence, default=None)


def _transform(name: Any) -> tuple[int, Move]:
    if not isinstance(name, str) or name not in ORDERS:
        raise ValueError(
            f"transform {shown(name)}: expected one of {', '.join(ORDERS)}, which permute a kernel's positions"
        )
    return ORDERS[name], EXACT[name]


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return weight.shape[1] == 1 and len(weight) == groups > 1


def _not_measured(transform: str) -> OrbitDecomposition:
    return OrbitDecomposition(math.nan, (math.nan, math.nan), math.nan, math.nan, transform, 0, ())


def _power(permutation: Tensor, exponent: int) -> Tensor:
    if not torch.equal(permutation.sort().values, torch.arange(len(permutation))):
        return torch.full_like(permutation, -1)
    return reduce(lambda so_far, _: permutation[so_far], range(exponent), torch.arange(len(permutation)))


def _folds(action: Tensor, order: int, generator: torch.Generator) -> Tensor:
    """For each unit its fold: whole orbits at random, so that each has some of more than one unit."""
    units = torch.arange(len(action))
    first, moved = units, units
    for _ in range(order - 1):
        moved = action[moved]
        first = torch.minimum(first, moved)
    folds = torch.empty_like(units)
    alone = action == units
    several = first[~alone].unique()
    count = max(min(FOLDS, len(several)), 1)
    for orbits in (several, first[alone]):
        folds[orbits] = torch.randperm(len(orbits), generator=generator) % count
    return folds[first]


def _balanced(w: Tensor) -> Tensor:
    """(out, in, positions) with every filter, and every input channel, of one mean square."""
    least = torch.finfo(w.dtype).tiny
    for _ in range(BALANCING):
        for axis in (1, 0):
            w = w / w.square().mean((axis, 2), keepdim=True).sqrt().clamp(min=least)
    return w / w.square().mean((1, 2), keepdim=True).sqrt().clamp(min=least)


def _scores(parts: list[Products]) -> np.ndarray:
    return reduce(add, (part.scores() for part in parts))
