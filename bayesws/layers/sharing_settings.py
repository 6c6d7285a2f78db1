"""How the copies of a layer share their weights, as one value that every sharing layer and network takes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from bayesws.io.arguments import choice, flag, shown
from bayesws.layers.sizes import check_sizes
from bayesws.sharing.doubly_stochastic import CONSTRAINTS
from bayesws.sharing.groups import Group

STACKS = ("fixed", "dense", "product", "power")
PATHWAYS = ("shared", "free")
GROUP_OF_SIZE = {1: "trivial", 4: "quarter-turns", 8: "dihedral"}  # what a fixed stack is of where none is named

GroupChoice = str | Group | Sequence[str | Group] | None


@dataclass(frozen=True)
class Sharing:
    """How the G copies of a layer's kernel share their weights: W_g = R_g w + L_g v_g (see `WeightSharing`).

    Layers, networks and `share` take it as `sharing`, or take its attributes as keywords: both of these are one layer.

        WSConv2d(8, 8, 3, sharing=Sharing(8, "fixed"))
        WSConv2d(8, 8, 3, group_size=8, stack="fixed")

    What keywords leave out is as here, but that the stack of a network (`WSCNN`, `WSResNet`) is then "fixed".

    Attributes:
        group_size: G.
        stack: what R_1 = I, ..., R_G are: "fixed" for the permutations of a known group; or learned and soft, "dense"
            (one matrix for each element), "product" (of one on the group axis and one on the support) or "power" (of
            one generator), see `sharing.doubly_stochastic`.
        group: of a fixed stack, a name (see `sharing.known_group`) or a `Group` on the kernel's positions; None where
            G tells: 1 is trivial, 4 quarter turns, 8 dihedral. For a network that offers it (`WSCNN`) several, one for
            every layer; they are kept as a tuple.
        pathways: "shared" for the canonical weights w, "free" for each copy's own v_g, or both.
        constraint: what a soft stack's matrices (of a product, its factors) keep to: "doubly" (stochastic), or, as
            ablations, only "rows" that sum to one, or "none".
        contains: whether biases, and the head of a network that offers it, have these pathways, too, and not one number
            for all copies. With free pathways alone the network is then the plain one of as many channels, with shared
            ones alone the group network. None: in `WSCNN`, a `WSResNet` without normalisation and `share` they do, in a
            layer by itself not.

    Raises:
        ValueError: an unknown stack, pathway or constraint, G below one; what does not go together, such as a known
            group or no shared pathway with a soft stack. Whether a group fits a kernel is seen where there is one.

    >>> Sharing(8, "fixed", pathways=("shared",))
    Sharing(group_size=8, stack='fixed', group=None, pathways=('shared',), constraint='doubly', contains=None)
    """

    group_size: int = 4
    stack: str = "dense"
    group: GroupChoice = None
    pathways: tuple[str, ...] = PATHWAYS
    constraint: str = "doubly"
    contains: bool | None = None

    def __post_init__(self) -> None:
        check_sizes(group_size=self.group_size)
        if not isinstance(self.stack, str) or self.stack not in STACKS:
            raise ValueError(f"stack {shown(self.stack)}: expected one of {', '.join(STACKS)}")
        if not isinstance(self.pathways, tuple | list) or not all(isinstance(name, str) for name in self.pathways):
            raise ValueError(f"pathways={shown(self.pathways)}: expected 'shared', 'free' or both, in a tuple")
        names = set(self.pathways)
        if not names or not names <= set(PATHWAYS) or len(names) != len(self.pathways):
            raise ValueError(f"pathways={shown(self.pathways)}: expected 'shared', 'free' or both, in a tuple")
        choice("constraint", self.constraint, CONSTRAINTS)
        if self.contains is not None:
            flag("contains", self.contains)
        if self.stack == "fixed":
            self._check_fixed()
        else:
            self._check_soft()
        object.__setattr__(self, "pathways", tuple(p for p in PATHWAYS if p in names))
        if not isinstance(self.group, str | Group | None):
            object.__setattr__(self, "group", tuple(self.group))

    def _check_fixed(self) -> None:
        if self.constraint != "doubly":
            raise ValueError(f"constraint={self.constraint!r} with stack='fixed': permutations are 'doubly' stochastic")
        if not isinstance(self.group, str | Group | Sequence | None):
            raise ValueError(f"group={shown(self.group)}: expected a name, a Group, or one of these for every layer")
        if self.group is None and self.group_size not in GROUP_OF_SIZE:
            raise ValueError(
                f"stack='fixed' with group_size={self.group_size}: several groups have that size; name one with group="
            )

    def _check_soft(self) -> None:
        if self.group is not None:
            raise ValueError(f"group={shown(self.group)} with stack={self.stack!r}: a known group needs stack='fixed'")
        if "shared" not in self.pathways:
            raise ValueError(f"stack={self.stack!r} without the shared pathway: nothing is shared; use stack='fixed'")

    @classmethod
    def of(cls, given: "Sharing | None", default: "Sharing", **keywords: Any) -> "Sharing":
        """What a caller asks for who may give a value, or keywords that change the default; None is as good as nothing.

        Raises:
            ValueError: a value and keywords; unknown keywords; what no `Sharing` may be.
        """
        known = [f.name for f in fields(cls)]
        if unknown := next((name for name in keywords if name not in known), None):
            raise ValueError(f"unknown argument {unknown!r}: expected one of the signature's, or {', '.join(known)}")
        changes = {name: value for name, value in keywords.items() if value is not None}
        if given is None:
            return replace(default, **changes)
        if not isinstance(given, Sharing):
            raise ValueError(f"sharing={shown(given)}: expected a Sharing, or keywords such as group_size=4")
        if changes:
            names = ", ".join(changes)
            raise ValueError(f"{names} beside sharing: expected one or the other; dataclasses.replace changes a value")
        return given

    @property
    def as_network(self) -> "Sharing":
        """For the layers of a network that offers to contain its special cases: it does, unless it is told not to."""
        return replace(self, contains=self.contains is not False)

    def as_keywords(self) -> dict[str, Any]:
        """Its attributes by name: the keywords that it stands for."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class StackKeywords(TypedDict, total=False):
    """The attributes of a `Sharing` that networks take by keyword, beside their own group_size."""

    stack: str
    group: GroupChoice
    pathways: tuple[str, ...]
    constraint: str
    contains: bool | None


class SharingKeywords(StackKeywords, total=False):
    """The attributes of a `Sharing` as keywords."""

    group_size: int
