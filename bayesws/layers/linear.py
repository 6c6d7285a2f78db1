"""WSLinear: a linear map whose G copies share weights through permutations of the input's coordinates."""

from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from bayesws.layers.sharing_settings import Sharing, SharingKeywords
from bayesws.layers.sizes import check_sizes
from bayesws.layers.weight_sharing import WeightSharing


class WSLinear(WeightSharing):
    """y[o, g] = W_g[o] · x + b[o], W_g = R_g w + L_g v_g (see `WeightSharing`).

    Args:
        in_features: d, the number of input coordinates that the stack permutes.
        out_features: number of outputs for every group element.
        bias: whether to add b (out_features,), the same for every group element; "free" for one of each element's own,
            (out_        device, dtype: as for `torch.nn.Linear`.
        sharing: how the G copies share; a known group is one on a line.
        keywords: the attributes of a `Sharing` in its place.

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
        sharing: Sharing | None = None,
        **keywords: Unpack[SharingKeywords],
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        sharing = Sharing.of(sharing, Sharing(), **keywords)
        super().__init__(1, out_features, (in_features,), False, bias, sharing, device, dtype)
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
