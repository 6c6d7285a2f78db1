"""Known groups as exact permutations: the truths that a learned stack can be compared with, or fixed to.

A group element acts on the d positions of a kernel (or of a signal): (R_g w)[n] = w[permutation_g[n]].
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations as orderings
from itertools import product

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """A finite group of permutations of d positions; two are equal if their names and permutations are.

    Attributes:
        name: what people call it.
        permutations: (G, d) int64; element g sends w to w[permutations[g]]. The first element is the identity.

    Raises:
        ValueError: rows that are not permutations, a first row that is not the identity, repeated elements or a set
            that is not closed under composition.
    """

    name: str
    permutations: Int64[Tensor, "group d"] = field(repr=False)

    def __post_init__(self) -> None:
        p = self.permutations
        identity = torch.arange(p.shape[-1])
        if p.ndim != 2 or not (p.sort(-1).values == identity).all():
            raise ValueError(f"group {self.name!r}: expected rows that are permutations of 0..d-1, shape (G, d)")
        if not (p[0] == identity).all():
            raise ValueError(f"group {self.name!r}: expected the identity as the first element")
        if len({tuple(row) for row in p.tolist()}) != len(p):
            raise ValueError(f"group {self.name!r}: two elements are equal; use a larger support or fewer elements")
        _ = self.table  # not closed: fails here, not later

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Group):
            return NotImplemented
        return self.name == other.name and torch.equal(self.permutations, other.permutations)

    def __hash__(self) -> int:
        return hash((self.name, self.permutations.shape))

    @property
    def size(self) -> int:
        """G, the number of elements."""
        return len(self.permutations)

    @property
    def degree(self) -> int:
        """d, the number of positions that the elements permute."""
        return self.permutations.shape[1]

    def matrices(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Float[Tensor, "group d d"]:
        """R_g as permutation matrices, (G, d, d): R_g[n, permutation_g[n]] = 1."""
        return torch.nn.functional.one_hot(self.permutations, self.degree).to(device=device, dtype=dtype)

    @cached_property
    def table(self) -> Int64[Tensor, "group group"]:
        """Composition: R_a R_b = R_table[a, b], shape (G, G)."""
        index = {tuple(row): g for g, row in enumerate(self.permutations.tolist())}
        # (R_a R_b w)[n] = (R_b w)[p_a[n]] = w[p_b[p_a[n]]]
        products = [[tuple(b[a].tolist()) for b in self.permutations] for a in self.permutations]
        if missing := next((p for row in products for p in row if p not in index), None):
            raise ValueError(f"group {self.name!r} is not closed: a product {missing} is not among its elements")
        return torch.tensor([[index[p] for p in row] for row in products])

    def on_group_axis(self) -> "Group":
        """The regular representation S_g: how element g permutes the group's own G positions.

        (S_g f)(h) = f(g⁻¹ h), so that S_a S_b = S_ab.
        """
        inverse = (self.table == 0).int().argmax(1)
        return Group(f"{self.name} on itself", self.table[inverse])

    def on_features(self) -> "Group":
        """S_g ⊗ P_g: how element g permutes the G·d positions (group axis first) of a kernel on group features."""
        axis = self.on_group_axis().permutations
        both = axis.unsqueeze(2) * self.degree + self.permutations.unsqueeze(1)
        return Group(f"{self.name} on its features", both.flatten(1))

    def cosets(self, subgroup: "Group") -> Int64[Tensor, "cosets subgroup"]:
        """The right cosets H r of a subgroup H, (G / |H|, |H|): which elements of this group, each in the order of H.

        On the group axis element h moves every coset within itself, as it moves the axis of H.

        Raises:
            ValueError: a group that is not a subgroup of this one.
        """
        index = {tuple(row): g for g, row in enumerate(self.permutations.tolist())}
        members = [index.get(tuple(row)) for row in subgroup.permutations.tolist()]
        if None in members:
            raise ValueError(f"{subgroup.name!r} is no subgroup of {self.name!r}: an element of it is missing there")
        found, left = [], set(range(self.size))
        while left:
            found.append([int(self.table[h, min(left)]) for h in members])
            left -= set(found[-1])
        return torch.tensor(found)


def generated(*groups: Group) -> Group:
    """The smallest group with all elements of several groups on the same positions: one of them, where it holds all.

    Raises:
        ValueError: groups on different numbers of positions.

    >>> generated(known_group("flips", 3, 3), known_group("quarter-turns", 3, 3)).size
    8
    """
    if len(degrees := {group.degree for group in groups}) > 1:
        raise ValueError(f"groups on {' and '.join(map(str, sorted(degrees)))} positions: expected the same positions")
    generators = torch.cat([group.permutations for group in groups])
    found = [tuple(generators[0].tolist())]
    known = set(found)
    for element in found:  # grows while it is walked
        for row in generators[:, list(element)].tolist():
            if tuple(row) not in known:
                known.add(tuple(row))
                found.append(tuple(row))
    whole = next((group for group in groups if group.size == len(found)), None)
    return whole or Group(" with ".join(group.name for group in groups), torch.tensor(found))


Move = Callable[[Tensor], Tensor]


def known_group(name: str, *shape: int) -> Group:
    """The known group of that name on a support of the given shape.

    On a line of d positions (one number): trivial, cyclic-shifts, flips, and cyclic-shifts-by-m for every divisor m of
    d: shifts by multiples of m.

    On a grid (two numbers): trivial, half-turns (C2), flips (left-right), up-down-flips, klein-four-axes (the half
    turn and both of these flips), and translations of the torus, vertical-translations (of the rows) and
    horizontal-translations; on a square also quarter-turns (C4), dihedral (D4, all eight motions), diagonal-flips (the
    transpose), antidiagonal-flips, klein-four-diagonals, and each of the translations "-by-m". On 3×3 positions also
    eighth-turns (C8), which move the ring around the middle by one.

    On voxels (three numbers): trivial; on a cube also cube-turns (all 24), and quarter-turns-about-axis-i and
    half-turns-about-axis-i for i in 0, 1, 2, and half-turns-about-all-axes (Klein four).

    >>> known_group("quarter-turns", 2, 2).permutations.tolist()  # of the positions 0 1 / 2 3
    [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]

    Raises:
        ValueError: a name that is not known for that support, a support that is not square.
    """
    support = "×".join(map(str, shape))
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise ValueError(f"group {name!r} on a support of shape {shape}: expected one to three positive numbers")
    known = _known_moves(shape)
    if name in known:
        return Group(name, _permutations(known[name], shape))
    if name in _known_moves((3,) * len(shape)):
        raise ValueError(f"group {name!r} does not fit a {support} kernel: it needs a square one, such as 3×3")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"group {name!r} on a {support} support: expected one of {', '.join(known)}{hint}")


def known_groups(*shape: int) -> list[Group]:
    """Every known group that acts faithfully on a support of the given shape, each set of permutations once.

    Where two names stand for one set (on 2×2 positions horizontal translations are flips), the first is kept.

    Raises:
        ValueError: a shape that is not one to three positive numbers.

    >>> [group.name for group in known_groups(4)]
    ['trivial', 'cyclic-shifts', 'flips', 'cyclic-shifts-by-2']
    """
    _ = known_group("trivial", *shape)  # for its checks of the shape
    found: dict[frozenset[tuple[int, ...]], Group] = {}
    for name, moves in _known_moves(shape).items():
        permutations = _permutations(moves, shape)
        elements = frozenset(tuple(row) for row in permutations.tolist())
        if len(elements) == len(moves) and elements not in found:
            found[elements] = Group(name, permutations)
    return list(found.values())


def _known_moves(shape: tuple[int, ...]) -> dict[str, list[Move]]:
    """The moves of every known group by its name, the identity first."""
    if len(shape) == 1:
        return _moves_on_line(*shape)
    return _moves_on_grid(*shape) if len(shape) == 2 else _moves_on_voxels(*shape)


def _moves_on_line(length: int) -> dict[str, list[Move]]:
    shifts = {
        f"cyclic-shifts{_by(step)}": [_roll((g,), (0,)) for g in range(0, length, step)] for step in _divisors(length)
    }
    every = {"cyclic-shifts": shifts.pop("cyclic-shifts")}
    return {"trivial": [_stay], **every, "flips": [_stay, _flip(0)], **shifts}


def _moves_on_grid(height: int, width: int) -> dict[str, list[Move]]:
    turns = [_turn(k) for k in range(4)]
    left_right, up_down = _flip(1), _flip(0)
    diagonal, antidiagonal = [_after_flip(turns[1]), _after_flip(turns[3])]
    of_squares: dict[str, list[Move]] = {
        "quarter-turns": turns,
        "dihedral": turns + [_after_flip(turn) for turn in turns],
        "diagonal-flips": [_stay, diagonal],
        "antidiagonal-flips": [_stay, antidiagonal],
        "klein-four-diagonals": [_stay, turns[2], diagonal, antidiagonal],
    }
    known: dict[str, list[Move]] = {
        "trivial": [_stay],
        **(of_squares if height == width else {}),
        "half-turns": [_stay, turns[2]],
        "flips": [_stay, left_right],
        "up-down-flips": [_stay, up_down],
        "klein-four-axes": [_stay, turns[2], left_right, up_down],
    }
    if (height, width) == (3, 3):
        known["eighth-turns"] = [_ring(k) for k in range(8)]
    for step in _divisors(height) if height == width else [1]:
        rows, columns = range(0, height, step), range(0, width, step)
        known[f"translations{_by(step)}"] = [_roll(shift, (0, 1)) for shift in product(rows, columns)]
        known[f"vertical-translations{_by(step)}"] = [_roll((shift,), (0,)) for shift in rows]
        known[f"horizontal-translations{_by(step)}"] = [_roll((shift,), (1,)) for shift in columns]
    return known


def _moves_on_voxels(depth: int, height: int, width: int) -> dict[str, list[Move]]:
    if not depth == height == width:
        return {"trivial": [_stay]}
    turns = []  # signed permutations of the axes with determinant one
    for order in orderings(range(3)):
        for flipped in product((False, True), repeat=3):
            matrix = torch.zeros(3, 3)
            for row, (column, flip) in enumerate(zip(order, flipped, strict=True)):
                matrix[row, column] = -1.0 if flip else 1.0
            if torch.linalg.det(matrix) > 0:
                turns.append(_signed_axes(order, flipped))
    planes = {0: (1, 2), 1: (0, 2), 2: (0, 1)}  # what turns about an axis turn
    half = {axis: _turn(2, plane) for axis, plane in planes.items()}
    return {
        "trivial": [_stay],
        "cube-turns": turns,
        **{f"quarter-turns-about-axis-{axis}": [_turn(k, planes[axis]) for k in range(4)] for axis in planes},
        **{f"half-turns-about-axis-{axis}": [_stay, half[axis]] for axis in planes},
        "half-turns-about-all-axes": [_stay, *half.values()],
    }


def _permutations(moves: list[Move], shape: tuple[int, ...]) -> Tensor:
    positions = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    return torch.stack([move(positions).flatten() for move in moves])


def _divisors(length: int) -> list[int]:
    """The divisors of a length below it, 1 first: steps whose shifts are more than the identity."""
    return [step for step in range(1, max(length, 2)) if length % step == 0]


def _by(step: int) -> str:
    return "" if step == 1 else f"-by-{step}"


def _stay(w: Tensor) -> Tensor:
    return w


def _turn(k: int, plane: tuple[int, int] = (-2, -1)) -> Move:
    return lambda w: torch.rot90(w, k, plane)


def _flip(axis: int) -> Move:
    return lambda w: w.flip(axis)


def _after_flip(move: Move) -> Move:
    return lambda w: move(w.flip(-1))


def _ring(k: int) -> Move:
    """The eight positions around the middle of 3×3, moved by k of them: k = 2 is a quarter turn of the whole."""
    ring = torch.tensor([0, 1, 2, 5, 8, 7, 6, 3])
    return lambda w: w.flatten().scatter(0, ring, w.flatten()[ring.roll(-k)]).reshape(w.shape)


def _roll(shifts: tuple[int, ...], dims: tuple[int, ...]) -> Move:
    return lambda w: torch.roll(w, shifts, dims)


def _signed_axes(order: tuple[int, ...], flipped: tuple[bool, ...]) -> Move:
    dims = [axis for axis, flip in enumerate(flipped) if flip]
    return lambda w: w.permute(order).flip(dims)
