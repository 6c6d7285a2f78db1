"""GroupHead: a linear map of features over a group, of their mean over it, or of both: the last step that may share."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.contract import Declaration, Factors, Pathway, Within, declare
from bayesws.layers.sizes import check_sizes

FREE_SCALE = 0.1  # of the free weights at the start, beside shared ones, as in every sharing layer


class GroupHead(nn.Module):
    """y = w (1/G) Σ_g x_g + Σ_g v_g x_g + b: invariant to the group in its shared pathway, free in the other.

        W_g = w/G + v_g        w ~ N(0, α⁻¹ I),   v_g ~ N(0, β⁻¹ I)

    Sharing strength: the correlation of corresponding entries of two W_g under the prior, α⁻¹/G² / (α⁻¹/G² + β⁻¹).

    Args:
        in_features: channels C, of every group element.
        out_features: K.
        group_size: G.
        pathways: of "shared" and "free", one or both.
        bias: whether to add b (K,).
        device, dtype: as for `torch.nn.Linear`.

    Shapes: x (batch, C, G) to y (batch, K). Parameters: `shared` w (K, C), `free` v (K, C, G), `bias` (K,).

    Raises:
        ValueError: sizes below one, unknown pathways, an input of another shape.
    """

    shared: nn.Parameter | None
    free: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group_size: int,
        pathways: tuple[str, ...] = ("shared", "free"),
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features, group_size=group_size)
        super().__init__()
        if pathways not in (("shared",), ("free",), ("shared", "free")):
            raise ValueError(f"pathways={pathways!r}: expected ('shared',), ('free',) or ('shared', 'free')")
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.pathway_names = pathways
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        names = [*pathways, *["bias"] * bias]
        self.log_precisions = nn.ParameterDict({name: nn.Parameter(torch.zeros((), **new)) for name in names})
        shapes = {
            "shared": (out_features, in_features),
            "free": (out_features, in_features, group_size),
            "bias": (out_features,),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **new)) if name in names else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as nn.Linear does, U(±1/√fan_in), the free ones smaller beside shared ones; no bias."""
        bound = 1 / math.sqrt(self.in_features)
        if self.shared is not None:
            nn.init.uniform_(self.shared, -bound, bound)
        if self.free is not None:
            scale = bound / math.sqrt(self.group_size) * (1.0 if self.shared is None else FREE_SCALE)
            nn.init.uniform_(self.free, -scale, scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def kernel(self) -> Float[Tensor, "out channel group"]:
        """W_g = w/G + v_g."""
        if self.shared is None:
            assert self.free is not None
            return self.free
        shared = self._lift(self.shared)
        return shared if self.free is None else shared + self.free

    def forward(self, x: Float[Tensor, "batch channel group"]) -> Float[Tensor, "batch out"]:
        """Apply the layer."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.in_features, self.group_size):
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.in_features}, {self.group_size}) for this "
                "GroupHead"
            )
        return nn.functional.linear(x.flatten(1), self.kernel().flatten(1), self.bias)

    def strength_at(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """ρ at other log precisions, log δ by pathway, (...); those not given are the layer's own."""
        logs = dict(self.log_precisions.items()) | dict(log_precisions)
        if self.shared is None:
            return torch.zeros_like(logs["free"])
        if self.free is None:
            return torch.ones_like(logs["shared"])
        return torch.sigmoid(logs["free"] - logs["shared"] - 2 * math.log(self.group_size))

    def declaration(self) -> Declaration:
        """What the evidence may know of this layer."""
        found = []
        if self.shared is not None:
            within = Within("free", 1 / self.group_size, self._lift, self._lower)
            found.append(
                Pathway(
                    "shared",
                    self.shared,
                    self.log_precisions["shared"],
                    lambda gradient: self._lower(self._by_element(gradient)).flatten(-2),
                    self._factor_shared,
                    within=within,
                )
            )
        if self.free is not None:
            found.append(
                Pathway(
                    "free",
                    self.free,
                    self.log_precisions["free"],
                    lambda gradient: gradient.flatten(-2),
                    lambda a, b: [(a, b)],
                    breaks_sharing=self.shared is not None,
                    picks_entries=True,
                )
            )
        if self.bias is not None:
            precision = self.log_precisions["bias"]
            found.append(Pathway("bias", self.bias, precision, lambda g: g, lambda a, b: [(a, b)], acts="bias"))
        return Declaration(
            tuple(p for p in found if p.parameter.requires_grad),
            patches=lambda x: x.flatten(1).unsqueeze(-1),
            responses=lambda y: y.unsqueeze(-1),
            precisions=tuple(self.log_precisions.values()),
            strength=self.strength_at,
        )

    def _lift(self, shared: Tensor) -> Tensor:
        """w/G in every copy: Rᵀ R = I/G."""
        return (shared / self.group_size).unsqueeze(-1).expand(*shared.shape, self.group_size)

    def _lower(self, free: Tensor) -> Tensor:
        return free.sum(-1) / self.group_size

    def _by_element(self, kernel_gradient: Tensor) -> Tensor:
        return kernel_gradient.unflatten(-1, (self.in_features, self.group_size))

    def _factor_shared(self, a: Tensor, b: Tensor) -> Factors:
        """A of the mean over the group: exact, as the mean is taken of the inputs."""
        a = a.unflatten(0, (self.in_features, -1)).unflatten(2, (self.in_features, -1))
        return [(a.mean((1, 3)), b)]

    def extra_repr(self) -> str:
        """Sizes, pathways and bias."""
        sizes = f"{self.in_features}, {self.out_features}, group_size={self.group_size}"
        return f"{sizes}, pathways={self.pathway_names}, bias={self.bias is not None}"


@declare.register
def _(module: GroupHead) -> Declaration:
    return module.declaration()
