"""Weight-sharing convolutions on images and voxels: to group features (lifting), and between group features."""

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bayesws.layers.patches import image_patches, pad_image
from bayesws.layers.sharing_settings import Sharing, SharingKeywords
from bayesws.layers.sizes import check_sizes
from bayesws.layers.weight_sharing import WeightSharing

Size = int | tuple[int, ...]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
AXES = ("depth", "height", "width")  # the last of them in fewer dimensions
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


class _WSConv(WeightSharing):
    """What all of them share: geometry in `dims` dimensions, and one torch convolution with the effective kernel."""

    dims: int
    lifts: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        bias: bool | str = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sharing: Sharing | None = None,
        **keywords: Unpack[SharingKeywords],
    ) -> None:
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: expected one of {', '.join(PADDING_MODES)}")
        kernel, strides = self._sizes("kernel_size", kernel_size, 1), self._sizes("stride", stride, 1)
        dilations = self._sizes("dilation", dilation, 1)
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f"padding={padding!r}: expected a number, {self.dims} of them, 'same' or 'valid'")
        if padding == "same" and set(strides) != {1}:
            raise ValueError(f"padding='same' with stride={stride}: expected stride 1")
        sharing = Sharing.of(sharing, Sharing(), **keywords)
        super().__init__(in_channels, out_channels, kernel, not self.lifts, bias, sharing, device, dtype)
        self.kernel_size, self.stride, self.dilation = kernel, strides, dilations
        self.padding = padding if isinstance(padding, str) else self._sizes("padding", padding, 0)
        self.padding_mode = padding_mode

    @classmethod
    def _sizes(cls, name: str, value: Size, least: int) -> tuple[int, ...]:
        sizes = (value,) * cls.dims if isinstance(value, int) else tuple(value)
        if len(sizes) != cls.dims or not all(isinstance(v, int) and v >= least for v in sizes):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}, or {cls.dims} of them")
        return sizes

    def forward(self, x: Tensor) -> Float[Tensor, "batch out group *space"]:
        """Apply the layer; see the class for shapes."""
        images = self._as_images(x)
        weight = self.kernel().reshape(self.out_channels * self.group_size, -1, *self.kernel_size)
        self._check_fits(x)
        padding = self.padding
        if self.padding_mode != "zeros":
            images = pad_image(images, self.kernel_size, padding, self.dilation, self.padding_mode)
            padding = (0,) * self.dims
        y = CONVOLUTIONS[self.dims](images, weight, self.flat_bias(), self.stride, padding, self.dilation)
        return y.unflatten(1, (self.out_channels, self.group_size))

    def _as_images(self, x: Tensor) -> Tensor:
        """Group features (batch, in, G, *space) as an image of in·G channels; images as they are."""
        expected = (self.in_channels,) if self.lifts else (self.in_channels, self.group_size)
        if x.ndim != 1 + len(expected) + self.dims or tuple(x.shape[1 : -self.dims]) != expected:
            shape = ", ".join(map(str, (*expected, *AXES[-self.dims :])))
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {shape}) for this {type(self).__name__}"
            )
        return x if self.lifts else x.flatten(1, 2)

    def _check_fits(self, x: Tensor) -> None:
        if self.padding == "same":
            return
        padding = (0,) * self.dims if isinstance(self.padding, str) else self.padding
        space = x.shape[-self.dims :]
        span = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if any(n + 2 * p < s for n, p, s in zip(space, padding, span, strict=True)):
            raise ValueError(
                f"input of {'×'.join(map(str, space))} positions with padding {padding}: smaller than the "
                f"{'×'.join(map(str, span))} that the kernel spans; use larger images, more padding or fewer layers"
            )

    def patches(self, x: Tensor) -> Tensor:
        """Layer input to (batch, in·d, positions)."""
        return image_patches(
            self._as_images(x), self.kernel_size, self.stride, self.padding, self.dilation, self.padding_mode
        )

    def responses(self, y: Tensor) -> Tensor:
        """(batch, out, G, *space) to (batch, out·G, positions)."""
        return y.flatten(3).flatten(1, 2)

    def extra_repr(self) -> str:
        """Geometry beside what every sharing layer shows."""
        return (
            f"{super().extra_repr()}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, padding_mode={self.padding_mode!r}"
        )


class WSLiftConv2d(_WSConv):
    """Lifting convolution: y[o, g] = W_g[o] ⋆ x + b[o], from images to features on G group elements.

    With a fixed known group and no free pathway it is the lifting layer of a group convolutional network.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, padding_mode, device, dtype: as for
            `torch.nn.Conv2d`.
        bias: whether to add b (out_channels,), the same for every group element; "free" for one of each element's own,
            (out_channels·G,); "both" for their sum, in two pathways.
        sharing: how the G copies share.
        keywords: the attributes of a `Sharing` in its place.

    Shapes: x (batch, in_channels, H, W) to y (batch, out_channels, G, H', W').

    Raises:
        ValueError: unknown names, sizes below one, a group that does not fit the kernel; an input of another shape.
    """

    dims, lifts = 2, True


class WSConv2d(_WSConv):
    """Group convolution: y[o, g] = W_g[o] ⋆ x + b[o], between features on G group elements.

    The stack acts on the G·k·k positions of a kernel, group axis first. With fixed quarter turns, no free pathway and
    padding that respects the turns it is a p4 group convolution: turning the input turns the output and shifts its
    group axis cyclically.

    Args: those of `WSLiftConv2d`.

    Shapes: x (batch, in_channels, G, H, W) to y (batch, out_channels, G, H', W').

    Raises:
        ValueError: as `WSLiftConv2d`.
    """

    dims, lifts = 2, False


class WSLiftConv3d(_WSConv):
    """Lifting convolution of voxels: y[o, g] = W_g[o] ⋆ x + b[o], to features on G group elements.

    With the fixed "cube-turns", 24 elements, and no free pathway it is the lifting layer of a network that is
    equivariant to the rotations of the cube.

    Args: those of `WSLiftConv2d`, sizes as for `torch.nn.Conv3d`. A fixed stack of 4 or 8 elements needs its `group`.

    Shapes: x (batch, in_channels, D, H, W) to y (batch, out_channels, G, D', H', W').

    Raises:
        ValueError: as `WSLiftConv2d`.
    """

    dims, lifts = 3, True


class WSConv3d(_WSConv):
    """Group convolution of voxels: y[o, g] = W_g[o] ⋆ x + b[o], between features on G group elements.

    The stack acts on the G·k³ positions of a kernel, group axis first; a dense one has (G - 1)·(G·k³)² logits, which
    is 10⁷ for the 24 turns of a cube and k = 3: "product" has (G - 1)·(G² + k⁶).

    Args: those of `WSLiftConv3d`.

    Shapes: x (batch, in_channels, G, D, H, W) to y (batch, out_channels, G, D', H', W').

    Raises:
        ValueError: as `WSLiftConv2d`.
    """

    dims, lifts = 3, False
