"""Candidates: which permutations, and which groups of them, the moments of some data allow a layer to share over."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bayesws.sharing.automorphisms import Automorphisms, closed_sets, misfit, near_automorphisms, p_value
from bayesws.sharing.groups import known_groups
from bayesws.sharing.transforms import transform_name

ORDERS = (2, 3)  # of the moments: E[x xᵀ] and E[x xᵀ · mean of x]
LEVEL = 1e-4  # of the test that a misfit is more than sampling noise
SHOWN_ABOVE_GAP = 4


@dataclass(frozen=True)
class CandidateGroup:
    """A set of candidate permutations that is closed under composition.

    Attributes:
        permutations: (G, d), the identity first; of a cyclic group the powers of one generator.
        misfits: (G,), root mean square over the moments, relative.
        p_value: smallest probability of the data's misfit if it is symmetric, over the steps from subgroups to groups
            that lead here, up to the first that is rejected: see `automorphisms.p_value`.
        fits: whether no step was rejected: the misfits are what sampling noise makes.
        name: of the known group with these permutations of the support, None where it has none.
    """

    permutations: Int64[Tensor, "group d"]
    misfits: Float[Tensor, " group"]
    p_value: float
    fits: bool
    name: str | None

    @property
    def misfit(self) -> float:
        """Largest misfit of an element."""
        return float(self.misfits.max())

    @property
    def is_cyclic(self) -> bool:
        """Whether the elements are the powers of the second."""
        return are_powers(self.permutations)


@dataclass(frozen=True)
class Candidates:
    """Approximate automorphisms of a layer's input, and the groups among them.

    Attributes:
        support: shape of the kernel.
        axis: length of the group axis in front of it, 1 for images.
        permutations: (n, axis · support), by ascending misfit.
        misfits: (n,), relative, root mean square over the moments.
        by_order: (n, 2), that of the second and that of the third moment.
        complete_below: no permutation (with a group axis: no product of one of the axis and one of the support) with a
            misfit below this one is missing from the list.
        groups: every group among the permutations.
        examples: how many data the moments were taken of.
        level: probability under which a misfit is no longer taken for sampling noise.
    """

    support: tuple[int, ...]
    axis: int
    permutations: Int64[Tensor, "n d"]
    misfits: Float[Tensor, " n"]
    by_order: Float[Tensor, "n order"]
    complete_below: float
    groups: tuple[CandidateGroup, ...]
    examples: int
    level: float = LEVEL

    @property
    def group(self) -> CandidateGroup:
        """The largest group that fits, of equally large ones the most probable; at least the identity."""
        return max((g for g in self.groups if g.fits), key=lambda g: (len(g.permutations), g.p_value))

    def of_size(self, group_size: int, cyclic: bool = False) -> CandidateGroup | None:
        """The group that a stack of G elements should start at: the most probable that fits, else the nearest.

        Args:
            group_size: G.
            cyclic: whether only the powers of one generator will do.
        """
        return next(iter(self.all_of_size(group_size, cyclic)), None)

    def all_of_size(self, group_size: int, cyclic: bool = False) -> list[CandidateGroup]:
        """Every group of G elements, in the order in which a stack should try them; see `of_size`."""
        sized = [g for g in self.groups if len(g.permutations) == group_size and (g.is_cyclic or not cyclic)]
        return sorted(sized, key=lambda g: (g.fits, g.p_value if g.fits else -g.misfit), reverse=True)

    def __str__(self) -> str:
        """The permutations by their misfit, to the gap and a little beyond, and all of the group that fits."""
        fitting = {tuple(p) for p in self.group.permutations.tolist()}
        gap = _first_beyond_gap(self.misfits)
        marked = {i: tuple(p) in fitting for i, p in enumerate(self.permutations.tolist())}
        shown = [i for i, is_in in marked.items() if is_in or i < gap + SHOWN_ABOVE_GAP]
        names = {i: self.name_of(self.permutations[i]) for i in shown}
        width = max(map(len, ["permutation", *names.values()]))
        lines = [f"{'permutation':<{width}}  misfit  2nd moment  3rd moment"]
        for i, name in names.items():
            second, third = self.by_order[i].tolist()
            if i == gap:
                lines.append(f"{'- widest gap ':-<{width}}  {'-' * 30}")
            mark = "  *" if marked[i] else ""
            lines.append(f"{name:<{width}}  {self.misfits[i]:6.4f}  {second:10.4f}  {third:10.4f}{mark}")
        place = "×".join(map(str, self.support)) + (f" positions, group axis of {self.axis}" if self.axis > 1 else "")
        group = self.group
        lines.append(
            f"{self.examples} data, kernel {place}; {len(shown)} of {len(self.misfits)} permutations shown, "
            f"all below a misfit of {self.complete_below:.4f} were found"
        )
        if len(group.permutations) == 1:
            lines.append("* no symmetry: noise explains the misfit of no permutation")
        else:
            called = group.name or "a group without a name"
            lines.append(
                f"* {called}, {len(group.permutations)} elements: misfits that sampling noise explains "
                f"(largest {group.misfit:.4f}, p = {group.p_value:.2g}; rejected below {self.level:g})"
            )
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        groups = [
            {
                "name": g.name,
                "permutations": g.permutations.tolist(),
                "misfit": g.misfit,
                "p_value": g.p_value,
                "fits": g.fits,
            }
            for g in self.groups
        ]
        listed = zip(self.permutations, self.misfits.tolist(), self.by_order.tolist(), strict=True)
        return {
            "support": list(self.support),
            "axis": self.axis,
            "examples": self.examples,
            "level": self.level,
            "complete_below": self.complete_below,
            "group": groups[next(i for i, g in enumerate(self.groups) if g is self.group)],
            "groups": groups,
            "permutations": [
                {"name": self.name_of(p), "permutation": p.tolist(), "misfit": misfit, "second": second, "third": third}
                for p, misfit, (second, third) in listed
            ],
        }

    def name_of(self, permutation: Int64[Tensor, " d"]) -> str:
        """What a person calls a permutation: a motion of the support and of the group axis, or its numbers."""
        if self.axis == 1:
            return transform_name(permutation, self.support) or _numbers(permutation)
        on_axis, on_support = split_product(permutation, self.axis)
        return f"{transform_name(on_support, self.support) or _numbers(on_support)}, axis {_numbers(on_axis)}"


def candidates_of(
    blocks: Float[Tensor, "block order d d"],
    support: tuple[int, ...],
    axis: int = 1,
    keep: int = 64,
    level: float = LEVEL,
    examples: int | None = None,
) -> Candidates:
    """Approximate automorphisms of moments, the groups among them, and which of these the data does not contradict.

    Without a group axis all permutations of the support are searched; with one all products S ⊗ P of a
    near-automorphism of the axis' own moment and one of the support's.

    Args:
        blocks: moments of independent, equally large blocks of the data, (B, order, d, d).
        support: shape of the kernel; axis: length of the group axis in front of it, d = axis · positions.
        keep: how many permutations to keep.
        level: probability under which a misfit is no longer taken for sampling noise.
        examples: how many data there were.
    """
    moments = blocks.mean(0).double()
    found = near_automorphisms(moments, keep) if axis == 1 else _products(moments, axis, keep)
    permutations = found.permutations
    by_order = misfit(moments, permutations)
    fits: dict[tuple[int, ...], tuple[float, bool]] = {}
    for indices in closed_sets(permutations):
        below = [h for h in fits if set(h) < set(indices)]
        least = min((fits[h][0] for h in below), default=1.0)
        if least > level:  # data that is not symmetric under a subgroup is not so under the group
            group = permutations[list(indices)]
            least = min([least, *(p_value(blocks, group, permutations[list(h)]) for h in below)])
        fits[indices] = least, least > level
    groups = tuple(
        CandidateGroup(
            ordered := _ordered(permutations[list(indices)]),
            _rms(misfit(moments, ordered)),
            least,
            fit,
            _name(ordered, axis, support),
        )
        for indices, (least, fit) in fits.items()
    )
    count = len(blocks) if examples is None else examples
    return Candidates(support, axis, permutations, _rms(by_order), by_order, found.complete_below, groups, count, level)


def are_powers(permutations: Int64[Tensor, "group d"]) -> bool:
    """Whether permutations are the powers of the second, the identity first."""
    generator, power = permutations[min(1, len(permutations) - 1)], permutations[0]
    for permutation in permutations:
        if not torch.equal(power, permutation):
            return False
        power = power[generator]
    return True


def split_product(permutation: Int64[Tensor, " d"], axis: int) -> tuple[Int64[Tensor, " axis"], Int64[Tensor, " s"]]:
    """S and P of a permutation S ⊗ P of a group axis (in front) and a support."""
    table = permutation.reshape(axis, -1)
    positions = table.shape[1]
    return table[:, 0] // positions, table[0] % positions


def _products(moments: Tensor, axis: int, keep: int) -> Automorphisms:
    """The S ⊗ P with the smallest misfits.

    The moments of the axis and of the support are partial traces: a misfit of S ⊗ P bounds theirs, up to √(what is
    traced out). That is how what is missing from the two lists tells what may be missing from the products.
    """
    d = moments.shape[-1]
    blocks = moments.unflatten(2, (axis, -1)).unflatten(1, (axis, -1))  # order, axis, s, axis, s
    on_axis = torch.einsum("oanbn->oab", blocks)
    on_support = torch.einsum("oanam->onm", blocks)
    norm = moments.flatten(1).norm(dim=1)
    bound, lists = float("inf"), []
    for marginal, traced in ((on_axis, d // axis), (on_support, axis)):
        found = near_automorphisms(marginal, keep)
        lists.append(found.permutations)
        ratio = float((marginal.flatten(1).norm(dim=1) / norm).min()) / traced**0.5
        bound = min(bound, found.complete_below * ratio)
    positions = d // axis
    both = lists[0][:, None, :, None] * positions + lists[1][None, :, None, :]  # S, P, axis, s
    permutations = both.flatten(2).flatten(0, 1)
    misfits = _rms(misfit(moments, permutations))
    order = misfits.argsort(stable=True)
    if len(order) > keep:
        bound = min(bound, float(misfits[order[keep]]))
    return Automorphisms(permutations[order[:keep]], misfits[order[:keep]], bound)


def _rms(by_order: Tensor) -> Tensor:
    return by_order.square().mean(1).sqrt()


def _ordered(group: Tensor) -> Tensor:
    """The powers of a generator where there is one; else the identity first, then as they come."""
    size, identity = len(group), torch.arange(group.shape[1])
    for generator in group:
        powers = [identity]
        while len(powers) < size:
            powers.append(powers[-1][generator])
        if len(set(map(tuple, torch.stack(powers).tolist()))) == size:
            return torch.stack(powers)
    is_identity = (group == identity).all(1)
    return torch.cat([group[is_identity], group[~is_identity]])


def _first_beyond_gap(misfits: Tensor) -> int:
    """How many misfits lie below the largest absolute gap."""
    return int((misfits[1:] - misfits[:-1]).argmax()) + 1 if len(misfits) > 1 else len(misfits)


def _name(group: Tensor, axis: int, support: tuple[int, ...]) -> str | None:
    """The known group that a group's elements are on the support; on a group axis each must be a different one."""
    parts = {tuple(split_product(p, axis)[1].tolist()) for p in group}
    if len(parts) < len(group):
        return None
    known = (g for g in known_groups(*support) if len(g.permutations) == len(group))
    return next((g.name for g in known if set(map(tuple, g.permutations.tolist())) == parts), None)


def _numbers(permutation: Tensor) -> str:
    return " ".join(map(str, permutation.tolist()))
