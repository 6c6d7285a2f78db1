"""Which group a learned stack has become, or why it is none."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bayesws.io.arguments import numbers, share, shown, whole
from bayesws.layers.change_group import ChangeGroup
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.sharing.groups import Group, known_groups
from bayesws.sharing.isomorphism import abstract_name, is_group
from bayesws.sharing.regularisers import mean_entropy

CLOSURE = 0.05  # largest closure and inverse error of a group
SOFTNESS = 0.1  # largest distance of a group to permutations
UNEVEN = 0.05  # largest |row or column sum - 1| that still counts as doubly stochastic
SHOWN = 4  # known groups listed when printed
WIDEST_TABLE = 12  # elements of the largest table that is printed
ROUNDS = 20  # of the alternation between elements and labels


@dataclass(frozen=True)
class Match:
    """A known group beside a stack, its elements and labels as near to the stack as they can be.

    Attributes:
        group: on the support, without the group axis.
        distance: of the stack to the group, in [0, 1]; see `identify_group`.
        elements: (G,), matrix g of the stack plays the group's element elements[g].
        labels: (axis,), position i of the group axis stands for the group's element labels[i].
    """

    group: Group
    distance: float
    elements: Int64[Tensor, " group"] = field(repr=False)
    labels: Int64[Tensor, " axis"] = field(repr=False)

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name


@dataclass(frozen=True, eq=False)
class Identified:
    """What `identify_group` found; printed, a short block to read.

    Attributes:
        name: of the known group, or None for "no group".
        reason: why it is none, one line; empty where it is one.
        support: shape of the kernel's support; None where it was not told.
        axis: size of the group axis in front of the support, 1 without.
        permutations: (G, d), the nearest permutations: row n of matrix g has its one in column permutations[g, n].
        distance: of the stack to them, 0 for permutations, at most 1.
        closure_error: max over a, b of min over c of ‖R_a R_b - R_c‖_F / √(2 d): 0 for a group, 1 for a product that
            is a permutation without a single entry in common with any element.
        inverse_error: max over a of min over c of ‖R_aᵀ - R_c‖_F / √(2 d).
        entropy: mean row entropy of all matrices but the first, nats.
        table: (G, G), products of the nearest permutations: R_a R_b = R_table[a, b], -1 where none of them equals it.
        abstract: the abstract group that the nearest permutations make, such as "cyclic of order 4"; None for none.
        distinct: how many of the nearest permutations are distinct.
        matches: the known groups of G elements, nearest first.
        consistent: whether the labels of the group axis are the elements that the layer before gives its positions;
            None where there is nothing to be consistent with (see `identify_groups`).
    """

    name: str | None
    reason: str
    support: tuple[int, ...] | None
    axis: int
    permutations: Int64[Tensor, "group d"] = field(repr=False)
    distance: float
    closure_error: float
    inverse_error: float
    entropy: float
    table: Int64[Tensor, "group group"] = field(repr=False)
    abstract: str | None
    distinct: int
    matches: tuple[Match, ...] = field(repr=False)
    consistent: bool | None = None

    def __str__(self) -> str:
        size, degree = self.permutations.shape
        shape = "×".join(map(str, self.support)) if self.support else str(degree // self.axis)
        before = f"{self.axis} group × " if self.axis > 1 else ""
        lines = [
            f"{self.name or f'no group ({self.reason})'}: {size} elements on {before}{shape} positions",
            f"  closure error {self.closure_error:.3f}, inverse error {self.inverse_error:.3f}, "
            f"row entropy {self.entropy:.3f} nats, distance to permutations {self.distance:.3f}",
            f"  nearest permutations: {self.abstract or 'not a group'}"
            + (f" ({self.distinct} distinct)" if self.distinct < size else ""),
        ]
        if 1 < size <= WIDEST_TABLE:
            lines += ["    " + " ".join("·" if c < 0 else str(c) for c in row) for row in self.table.tolist()]
        if self.matches:
            near = ", ".join(f"{m.name} {m.distance:.3f}" for m in self.matches[:SHOWN])
            lines.append(f"  known groups by distance: {near}")
        if self.consistent is not None:
            lines.append(f"  group axis {'as' if self.consistent else 'NOT as'} the layer before labels it")
        return "\n".join(lines)


def identify_group(
    stack: Float[Tensor, "group d d"] | WeightSharing,
    support: tuple[int, ...] | None = None,
    axis: int | None = None,
    *,
    closure: float = CLOSURE,
    softness: float = SOFTNESS,
) -> Identified:
    """Find the known group that a stack of (soft) permutations is, up to the order of its elements, or say why none.

    It is a group where it is as good as hard (`softness`), no element repeats, and products and inverses of its
    matrices are in it (`closure`); it is a known one where its nearest permutations are that group's. On group features
    (axis > 1) they must be S_g ⊗ P_g with the group's P_g on the support and S_g its regular representation,

        S_g[i] = j  where  label(j) = g⁻¹ label(i),

    for some labels of the axis, one position an element: the layer before may have ordered its own as it liked.

    Distances, to permutations and to known groups Q, are (Σ_g ‖R_g - Q_g‖²_F / (2 d G))^½, in [0, 1]: 1 where no entry
    is in common. To a known group it is the smallest over the order of its elements; on group features also over the
    labels, by alternate assignments, so that there it may be a little too large unless the stack is that group.

    Args:
        stack: (G, d, d), doubly stochastic, or a weight-sharing layer, which knows its support and axis.
        support: shape of the kernel's support, such as (3, 3). None tries a line, a square and a cube, as far as the
            number of positions allows.
        axis: positions of the group axis in front of the support; 1, and None, for a layer without.
        closure: largest `closure_error` and `inverse_error` of a group.
        softness: largest `distance` of a group to its nearest permutations.

    Raises:
        ValueError: a stack that is not doubly stochastic, a support or an axis that does not fit it, a layer that
            shares nothing.

    >>> from bayesws.sharing import known_group
    >>> identify_group(known_group("quarter-turns", 3, 3).matrices()[[0, 3, 1, 2]], (3, 3)).name
    'quarter-turns'
    """
    if isinstance(stack, WeightSharing):
        if support is not None or axis is not None:
            raise ValueError("support= or axis= beside a layer: expected the layer alone, it knows both")
        if stack.shared is None:
            raise ValueError("a layer without the shared pathway shares nothing: expected one with pathway 'shared'")
        support, axis, stack = stack.stack.support, stack.stack.axis, stack.representations()
    if not isinstance(stack, Tensor | np.ndarray):
        raise ValueError(
            f"a {type(stack).__name__}: expected a stack (G, d, d) as a tensor, or a weight-sharing layer; for a whole "
            "network or a fit use identify_groups"
        )
    r, axis = numbers("stack", stack).detach().double().cpu(), 1 if axis is None else whole("axis", axis)
    if support is not None:
        if not isinstance(support, tuple | list):
            raise ValueError(f"support={shown(support)}: expected the kernel's sides, such as (3, 3)")
        support = tuple(whole("support", side) for side in support)
    _check(r, support, axis)
    for name, threshold in (("closure", closure), ("softness", softness)):
        share(name, threshold, "a threshold in [0, 1]", zero=True, one=True)
    size, d = r.shape[:2]
    hard = torch.stack([torch.from_numpy(linear_sum_assignment(-matrix.numpy())[1]) for matrix in r]).long()
    nearest = _matrices(hard)
    distance = float(((r - nearest).square().sum() / (2 * d * size)).sqrt())
    among = _table(hard.unique(dim=0))
    known: str | None = None
    matches = []
    for group in _candidates(r, support, axis):
        exact = _match(nearest, group, axis)
        if exact.distance == 0:
            known = group.name
        matches.append(replace(exact, distance=distance) if exact.distance == 0 else _match(r, group, axis))
    found = Identified(
        known,
        "",
        support,
        axis,
        hard,
        distance,
        _closure_error(r),
        _distance_to_nearest(r.mT, r),
        max(0.0, float(mean_entropy(r))),
        _table(hard),
        abstract_name(among) if is_group(among) else None,
        len(among),
        tuple(sorted(matches, key=lambda match: match.distance)),
    )
    reason = _reason(found, closure, softness)
    return replace(found, name=None, reason=reason) if reason else found


def identify_groups(model: Any, *, closure: float = CLOSURE, softness: float = SOFTNESS) -> dict[str, Identified]:
    """`identify_group` for every weight-sharing layer of a network that shares, by its name, in order.

    On group features `consistent` says whether the layer takes the positions of its group axis for the elements that
    the layer before made them: where element i of that one is P_i, S_g must send i to the j with P_j = P_g⁻¹ P_i. Only
    then is the network as a whole equivariant. "The layer before" is the one before in the order of the modules.
    Nothing is said after a layer that is no known group, where this layer is none, or between layers over different
    groups in a network with a `layers.ChangeGroup` (which is equivariant to what both have in common).

    Args:
        model: a network, or a `FitResult` (its network).
        closure, softness: as for `identify_group`.

    Raises:
        ValueError: a network without weight-sharing layers that share.
    """
    net = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    found: dict[str, Identified] = {}
    before: Identified | None = None
    if not isinstance(net, nn.Module):
        raise ValueError(f"a {type(model).__name__}: expected a network or a FitResult")
    regroups = any(isinstance(module, ChangeGroup) for module in net.modules())
    for name, layer in net.named_modules():
        if not isinstance(layer, WeightSharing):
            continue
        here = None
        if layer.shared is not None:
            here = identify_group(layer, closure=closure, softness=softness)
            found[name] = here = replace(here, consistent=_is_consistent(before, here, regroups))
        before = here
    if not found:
        raise ValueError(f"{type(net).__name__} has no weight-sharing layer with the pathway 'shared': expected one")
    return found


def _is_consistent(before: Identified | None, here: Identified, regroups: bool) -> bool | None:
    """Whether i -> element of position i, by the layer before and by this one, differ by a right multiplication.

    S_g, g⁻¹ on the labels, is the same for labels l(i) and l(i) h. A known group of the same name on another support
    lists its elements in the same order; where its table differs it is another group.
    """
    if here.axis == 1 or before is None or before.name is None or here.name is None:
        return None
    if before.name != here.name:
        return None if regroups else False
    given, taken = before.matches[0], here.matches[0]  # the nearest group is the one that it is
    table = taken.group.table
    if not torch.equal(given.group.table, table):
        return False
    return any(torch.equal(table[taken.labels, h], given.elements) for h in range(len(table)))


def _check(r: Tensor, support: tuple[int, ...] | None, axis: int) -> None:
    if r.ndim != 3 or r.shape[1] != r.shape[2] or not r.numel():
        raise ValueError(f"stack of shape {tuple(r.shape)}: expected (G, d, d), a square matrix for each element")
    if not torch.isfinite(r).all():
        raise ValueError(f"stack with {int((~torch.isfinite(r)).sum())} NaN or infinite entries: expected finite ones")
    off = max(float((r.sum(dim) - 1).abs().max()) for dim in (1, 2))
    if off > UNEVEN or float(r.min()) < -UNEVEN:
        raise ValueError(
            f"stack with entries from {float(r.min()):.2g} and sums that miss 1 by {off:.2g}: expected doubly "
            "stochastic matrices; project logits with bayesws.sharing.sinkhorn"
        )
    d = r.shape[1]
    if axis < 1 or d % axis:
        raise ValueError(f"axis={axis} with matrices of {d}×{d}: expected a divisor of {d}, 1 without a group axis")
    if support is not None and (min(support, default=0) < 1 or prod(support) * axis != d):
        raise ValueError(f"support={support} and axis={axis} with matrices of {d}×{d}: expected {d} positions in all")


def _candidates(r: Tensor, support: tuple[int, ...] | None, axis: int) -> list[Group]:
    """The known groups of as many elements; a group axis must have a position for each of them."""
    if axis not in (1, len(r)):
        return []
    positions = r.shape[1] // axis
    shapes = [support] if support is not None else _shapes(positions)
    groups = [group for shape in shapes if len(shape) <= 3 for group in known_groups(*shape)]
    once = {frozenset(map(tuple, group.permutations.tolist())): group for group in reversed(groups)}
    return [group for group in reversed(once.values()) if group.size == len(r)]


def _shapes(positions: int) -> list[tuple[int, ...]]:
    """A line, a square and a cube of so many positions, as far as there are."""
    sides = [(round(positions ** (1 / power)), power) for power in (1, 2, 3)]
    return [(side,) * power for side, power in sides if side**power == positions and (power == 1 or side > 1)]


def _matrices(permutations: Tensor) -> Tensor:
    return nn.functional.one_hot(permutations, permutations.shape[1]).double()


def _table(permutations: Tensor) -> Tensor:
    """R_a R_b = R_table[a, b], -1 where the product is not among them; the first of equal ones."""
    rows = [tuple(row) for row in permutations.tolist()]
    index = {row: g for g, row in reversed(list(enumerate(rows)))}
    return torch.tensor([[index.get(tuple(b[i] for i in a), -1) for b in rows] for a in rows])


def _distance_to_nearest(matrices: Tensor, stack: Tensor) -> float:
    """max over the matrices M of min over c of ‖M - R_c‖_F / √(2 d)."""
    squares = stack.square().sum((1, 2)) - 2 * torch.einsum("bnm,cnm->bc", matrices, stack)
    nearest = stack[squares.argmin(1)]
    return float(((matrices - nearest).square().sum((1, 2)) / (2 * stack.shape[1])).sqrt().max())


def _closure_error(r: Tensor) -> float:
    return max(_distance_to_nearest(a @ r, r) for a in r)


def _match(r: Tensor, group: Group, axis: int) -> Match:
    """The elements, and labels of the axis, that bring a known group nearest to a stack.

    agreement[a, b, i, j] = Σ_n R_a[(i, n), (j, p_b[n])], p_b the permutation of the group's element b.
    """
    size, d = r.shape[:2]
    blocks = r.unflatten(2, (axis, -1)).unflatten(1, (axis, -1))  # (a, i, n, j, m)
    columns = blocks.permute(0, 1, 3, 2, 4)  # (a, i, j, n, m)
    positions = torch.arange(group.degree)
    agreement = torch.stack([columns[..., positions, p].sum(-1) for p in group.permutations], 1)
    elements, labels = _assign(agreement.sum((2, 3))), torch.zeros(1, dtype=torch.int64)
    matrices = group.matrices()
    if axis > 1:
        elements, labels = _alternate(agreement, group, elements)
        matrices = _labelled(group, labels)
    distance = float(((r - matrices[elements]).square().sum() / (2 * d * size)).sqrt())
    return Match(group, distance, elements, labels)


def _alternate(agreement: Tensor, group: Group, elements: Tensor) -> tuple[Tensor, Tensor]:
    """Elements for given labels, labels for given elements, until the agreement stops growing."""
    labels, best = _labels(agreement, group, elements)
    for _ in range(ROUNDS):
        total = torch.einsum("abij,bij->ab", agreement, _axis_matrices(group, labels))
        elements = _assign(total)
        again, agreed = _labels(agreement, group, elements)
        if agreed <= best:
            break
        labels, best = again, agreed
    return elements, labels


def _labels(agreement: Tensor, group: Group, elements: Tensor) -> tuple[Tensor, float]:
    """The best labels of the axis where position `base` is the identity, over all bases; and their agreement.

    S_g[j] = base and S_g⁻¹[base] = j exactly where label(j) = g, so one assignment of positions to elements a base.
    """
    size = len(elements)
    inverse = (group.table == 0).int().argmax(1)
    by_element = agreement[torch.arange(size), elements][elements.argsort()]  # (g, i, j), g the group's
    best, chosen = -1.0, torch.arange(size)
    for base in range(size):
        labels = _assign((by_element[:, :, base] + by_element[inverse][:, base, :]).T)
        agreed = float((by_element * _axis_matrices(group, labels)).sum())
        if agreed > best:
            best, chosen = agreed, labels
    return chosen, best


def _axis_matrices(group: Group, labels: Tensor) -> Tensor:
    """S_g[i, j] = 1 where label(j) = g⁻¹ label(i), (G, axis, axis)."""
    inverse = (group.table == 0).int().argmax(1)
    return _matrices(labels.argsort()[group.table[inverse][:, labels]])


def _labelled(group: Group, labels: Tensor) -> Tensor:
    """S_g ⊗ P_g, (G, d, d)."""
    product = torch.einsum("gij,gnm->ginjm", _axis_matrices(group, labels), group.matrices())
    return product.flatten(3).flatten(1, 2)


def _assign(score: Tensor) -> Tensor:
    """The column of every row in the assignment with the largest sum."""
    return torch.from_numpy(linear_sum_assignment(-score.numpy())[1]).long()


def _reason(found: Identified, closure: float, softness: float) -> str:
    """Why it is no known group, one line; empty where it is one."""
    size = len(found.permutations)
    hint = f"; its nearest permutations are {found.name}" if found.name else ""
    if found.distance > softness:
        return f"too soft: distance {found.distance:.2f} to permutations, at most {softness:g}{hint}"
    if found.distinct < size:
        return f"elements repeated: {found.distinct} of {size} are distinct"
    if found.closure_error > closure:
        return f"not closed: closure error {found.closure_error:.2f}, at most {closure:g}{hint}"
    if found.inverse_error > closure:
        return f"no inverses: inverse error {found.inverse_error:.2f}, at most {closure:g}{hint}"
    if found.name is None:
        return "closed but not a known group here"
    return ""
