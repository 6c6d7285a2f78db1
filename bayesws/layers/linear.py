"""WSLinear: a linear map whose G copies share weights through permutations of the input's coordinates."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesws.layers.weight_sharing import PATHWAYS, WeightSharing, check_sizes
from bayesws.sharing.groups import Group


class WSLinear(WeightSharing):
    """y[o, g] = W_g[o] · x + b[o], W_g = R_g w + L_g v_g (see `WeightSharing`).

    Args:
        in_features: d, the number of input coordinates that the stack permutes.
        out_features: number of outputs for every group element.
        bias: whether to add b (out_features,), the same for every group element; "free" for one of each element's own,
            (out_features·G,).
        device, dtype: as for `torch.nn.Linear`.
        group_size: G.
        stack: "dense", "product", "power" or "fixed" (then `group` names a known group on a line, or is a `Group`).
        pathways: "shared", "free" or both.
        constraint: "doubly", "rows" or "none", what a soft stack keeps to (see `RepresentationStack`).

    Shapes: x (..., in_features) to y (..., out_features, G).

    Raises:
        ValueError: unknown names, sizes below one, a group that does not fit; an input of another size.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool | str = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        group_size: int = 4,
        stack: str = "dense",
        group: str | Group | None = None,
        pathways: tuple[str, ...] = PATHWAYS,
        constraint: str = "doubly",
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(
            1, out_features, (in_features,), False, bias, group_size, stack, group, pathways, device, dtype, constraint
        )
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out group"]:
        """Apply the layer."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"input of shape {tuple(x.shape)}: expected (..., {self.in_features}) for this WSLinear")
        y = torch.einsum("ogn,...n->...og", self.kernel().squeeze(2), x)
        bias = self.flat_bias()
        return y if bias is None else y + bias.unflatten(0, (self.out_features, self.group_size))

    def _sizes_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"

    def patches(self, x: Tensor) -> Tensor:
        """(batch, ..., in) to (batch, in, positions)."""
        return x.reshape(x.shape[0], -1, x.shape[-1]).mT

    def responses(self, y: Tensor) -> Tensor:
        """(batch, ..., out, G) to (batch, out·G, positions)."""
        return y.reshape(y.shape[0], -1, y.shape[-2] * y.shape[-1]).mT
