"""A sharing layer in the place of a plain one: group axes folded into the channels, as plain modules expect them."""

from torch import Tensor, nn

from bayesws.layers.weight_sharing import WeightSharing


class FoldGroup(nn.Module):
    """y = flatten(layer(unflatten(x))): channel c of group element g is the flat channel c·G + g.

    Args:
        layer: a `WSLinear`, or a lifting or group convolution.

    Shapes: x (batch, in·G, *space), or (batch, in, *space) for a lifting convolution, to y (batch, out·G, *space); for
    a linear layer x (..., in_features) to y (..., out·G).
    """

    def __init__(self, layer: WeightSharing) -> None:
        super().__init__()
        self.layer = layer
        self.is_convolution = hasattr(layer, "kernel_size")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if not self.is_convolution:
            return self.layer(x).flatten(-2)
        if self.layer.on_features:
            x = x.unflatten(1, (self.layer.in_channels, self.layer.group_size))
        return self.layer(x).flatten(1, 2)

    @property
    def weight(self) -> Tensor:
        """The effective kernel as a plain layer's weight, for modules that look at their children's weights."""
        return plain_weight(self.layer)

    @property
    def bias(self) -> Tensor | None:
        """The effective bias as a plain layer's, (out·G,)."""
        return self.layer.flat_bias()


def plain_weight(layer: WeightSharing) -> Tensor:
    """The effective kernel as torch's own layers hold it, (out·G, in_features) or (out·G, in·G or in, *kernel_size)."""
    return layer.kernel().reshape(layer.out_channels * layer.group_size, -1, *getattr(layer, "kernel_size", ()))
