"""Branches: modules side by side as one layer, so that the evidence weighs a convolution against a free map."""

import keyword
from collections.abc import Mapping
from functools import reduce as fold
from operator import add
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.containment import places_of
from bayesws.layers.contract import Declaration, Joint, declare

REDUCTIONS = ("mean", "sum")


class Branches(nn.Module):
    """y = (1/K) Σ_k branch_k(x), or their sum: one layer, whose pathways are those of all its branches.

    Every layer within is a pathway with a precision of its own ("conv.weight", "fc.weight", ...). The whole is one row
    of every table, and one joint block of H in `Curvature("layer")`, which counts the covariance between the branches.

    Its sharing strength is the first branch's share in the prior variance of kernel entries that all branches reach,

        ρ = σ₁² / Σ_k σ_k²        σ_k² = 1/δ of the branch's kernel; α⁻¹ + β⁻¹ of a `WeightSharing` one

    the correlation, under the prior, of two entries that the first branch ties together and the others do not, as a
    convolution does beside a linear layer. It is there where each of two or more branches holds exactly one layer with
    a kernel to train.

    An nn.Conv2d beside a `Linear2d` of the same images lies within its directions, a `GroupConv2d` within those of an
    nn.Conv2d: what they are together is accounted for once (`evidence.nesting`). Others have blocks of their own.

    Args:
        reduce: "mean" or "sum".
        branches: modules by name, the one that shares most first; each takes x, and all give one shape.

    Attributes:
        pruned: the names of branches that were taken out, as dead ones: K and ρ still count them, as zero.
        shares_most: the name of the first branch, which ρ is the share of.

    Shapes: x as every branch takes it, (batch, ...), to y as every branch gives it.

    Raises:
        ValueError: no branch, what is no module, one module twice, a name that a module cannot have, another reduction;
            outputs of different shapes.

    >>> fc = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.Unflatten(1, (4, 8, 8)))
    >>> Branches(conv=nn.Conv2d(1, 4, 3, padding=1), fc=fc)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(self, *, reduce: str = "mean", **branches: Any) -> None:
        super().__init__()
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce={reduce!r}: expected one of {', '.join(REDUCTIONS)}")
        if not branches:
            raise ValueError("no branches: expected one or more modules by name, such as conv=nn.Conv2d(1, 4, 3)")
        self.reduce = reduce
        self.shares_most = next(iter(branches))
        self.pruned: tuple[str, ...] = ()
        for name, branch in branches.items():
            if not name.isidentifier() or keyword.iskeyword(name) or hasattr(self, name):
                raise ValueError(
                    f"a branch named {name!r}: expected an identifier that no nn.Module has; choose another"
                )
            if not isinstance(branch, nn.Module):
                raise ValueError(f"branch {name!r} of type {type(branch).__name__}: expected an nn.Module")
            if any(branch is other for other in self._modules.values()):
                raise ValueError(f"branch {name!r} is a branch under another name, too: expected modules of their own")
            self.add_module(name, branch)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The mean, or the sum, of the branches' outputs."""
        outputs = {name: branch(x) for name, branch in self.named_children()}
        shapes = {name: tuple(y.shape) for name, y in outputs.items()}
        if len(set(shapes.values())) > 1:
            told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"branches give different shapes, {told}: expected one; reshape with nn.Unflatten")
        total = fold(add, outputs.values())
        return total / self.mean_of if self.reduce == "mean" else total

    @property
    def mean_of(self) -> int:
        """K, with those that were taken out."""
        return len(self._modules) + len(self.pruned)

    def prune(self, name: str) -> None:
        """Take a branch out.

        Raises:
            ValueError: no branch of that name, or the last one.
        """
        names = [name for name, _ in self.named_children()]
        if name not in names or len(names) == 1:
            raise ValueError(f"prune {name!r}: expected one of several branches, which are {', '.join(names)}")
        delattr(self, name)
        self.pruned = (*self.pruned, name)

    def strength_at(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """ρ at log precisions by the kernels' pathway names, such as "conv.weight", (...)."""
        kernels = _kernels(self)
        # log σ_k², one branch beside the other
        variances = [torch.stack([-log_precisions[name] for name in names]).logsumexp(0) for names in kernels.values()]
        shares = torch.stack(variances).softmax(0)
        return shares[0] if self.shares_most in kernels else torch.zeros_like(shares[0])

    def extra_repr(self) -> str:
        """The reduction, and what was taken out."""
        return f"reduce={self.reduce!r}" + (f", pruned={self.pruned!r}" if self.pruned else "")


def _kernels(layer: Branches) -> dict[str, list[str]]:
    """By branch the names of the kernel pathways within it, of one layer; no name where it has not exactly one."""
    found: dict[str, list[str]] = {}
    for branch, module in layer.named_children():
        candidates = []
        for name, part in module.named_modules(prefix=branch):
            declared = declare(part)
            if isinstance(declared, Declaration):
                kernels = [p for p in declared.pathways if p.acts == "kernel" and not p.of_prior_only]
                candidates += [[f"{name}.{p.name}" for p in kernels]] if kernels else []
        found[branch] = candidates[0] if len(candidates) == 1 else []
    return found


@declare.register
def _(module: Branches) -> Joint:
    kernels = _kernels(module)
    several = len(kernels) + len(module.pruned) > 1
    strength = module.strength_at if several and all(kernels.values()) else None
    return Joint(strength, places_of(dict(module.named_children())))
