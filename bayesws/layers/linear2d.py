"""Linear2d: a linear map of all positions of an image, which has every convolution between these sizes in it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.contract import Declaration, Pathway, Within, declare
from bayesws.layers.patches import image_patches, pad_image
from bayesws.layers.sizes import check_sizes

DISTINCT = 1e-6  # the least eigenvalue of Rᵀ R beside the largest


class Linear2d(nn.Module):
    """y[o, p] = Σ_{i, q} W[o, p, i, q] x[i, q] + b[o, p]: from all positions q to all positions p, nothing shared.

    Beside an nn.Conv2d in `Branches` it is the free pathway of a layer that may or may not be a convolution: the
    convolution lies within its directions (`convolution_within`), and the two are accounted for jointly.

    Args:
        in_channels, out_channels: of the images.
        size: height and width of the input, or one number for both.
        out_size: of the output; None is that of the input.
        bias: whether to add b, a number for every channel and position.
        device, dtype: as for `torch.nn.Linear`.

    Shapes: x (batch, in_channels, height, width) to y (batch, out_channels, out height, out width). Parameters:
    `weight` (out_channels · out positions, in_channels · positions), `bias` (out_channels · out positions,).

    Raises:
        ValueError: sizes below one, an input of another shape.

    Reference: arXiv 2310.06131, section 3 (FC).

    >>> Linear2d(3, 10, 32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | Sequence[int],
        out_size: int | Sequence[int] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.size = _pair("size", size)
        self.out_size = self.size if out_size is None else _pair("out_size", out_size)
        shape = out_channels * math.prod(self.out_size), in_channels * math.prod(self.size)
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(shape, **new))
        self.bias = nn.Parameter(torch.empty(shape[0], **new)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as nn.Linear does, U(±1/√fan_in)."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height_out width_out"]:
        """Apply the layer."""
        if x.ndim != 4 or tuple(x.shape[1:]) != (self.in_channels, *self.size):
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.in_channels}, {self.size[0]}, "
                f"{self.size[1]}) for this Linear2d; give the size of its input as size="
            )
        return nn.functional.linear(x.flatten(1), self.weight, self.bias).unflatten(1, self._out_shape)

    @property
    def _out_shape(self) -> tuple[int, int, int]:
        return self.out_channels, *self.out_size

    def extra_repr(self) -> str:
        """Channels and sizes."""
        sizes = f"size={self.size}" + (f", out_size={self.out_size}" if self.out_size != self.size else "")
        return f"{self.in_channels}, {self.out_channels}, {sizes}, bias={self.bias is not None}"


def _pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"{name}={size!r}: expected one number, or height and width")
    check_sizes(**{f"{name} {side}": length for side, length in zip(("height", "width"), sides, strict=True)})
    return sides


@declare.register
def _(module: Linear2d) -> Declaration:
    found = [Pathway("weight", module.weight, None, lambda k: k.flatten(-2), lambda a, b: [(a, b)], picks_entries=True)]
    if module.bias is not None:
        found.append(Pathway("bias", module.bias, None, lambda g: g, lambda a, b: [(a, b)], acts="bias"))
    return Declaration(
        tuple(p for p in found if p.parameter.requires_grad),
        patches=lambda x: x.flatten(1).unsqueeze(-1),
        responses=lambda y: y.flatten(1).unsqueeze(-1),
    )


def convolution_within(conv: nn.Conv2d, dense: Linear2d, name: str) -> dict[str, Within]:
    """Where a convolution's weight and bias lie within those of a dense map of the same images, by "weight", "bias".

    R writes the kernel k into the matrix, W[o, p, i, q] = Σ k[o, i, t] over the taps t that see q from p. Rᵀ R counts
    the positions p at which two taps see one q: κ I, κ the number of output positions, where nothing is padded or the
    padding is circular; with zeros around the image a tap at the border sees fewer. Biases have all positions.

    Args:
        conv: with one group, else nothing is returned; nor where its output has another size than the dense map's, or
            where R has no inverse: taps that see nothing, or always the same.
        dense: the map beside it.
        name: of the dense map, in the names of the outer pathways.
    """
    if conv.groups != 1 or (conv.in_channels, conv.out_channels) != (dense.in_channels, dense.out_channels):
        return {}
    seen = _seen(conv, dense)
    if seen is None:
        return {}
    positions, pixels = math.prod(dense.out_size), math.prod(dense.size)
    taps, places = (seen > 0).nonzero(as_tuple=True)  # a tap that sees what is padded with zeros adds nothing
    entries = places * pixels + seen[taps, places] - 1  # of the matrix (positions, pixels), flat
    gram = _gram(taps, entries, len(seen))
    values = torch.linalg.eigvalsh(gram)
    if values[0] < DISTINCT * values[-1]:
        return {}
    kappa = float(values[-1])
    whole = bool((gram == kappa * torch.eye(len(gram), dtype=gram.dtype)).all())
    matrix = (dense.out_channels, positions, dense.in_channels, pixels)

    def lift(kernel: Tensor) -> Tensor:
        found = kernel.new_zeros(*kernel.shape[:2], positions * pixels)
        found.index_add_(2, entries.to(kernel.device), kernel.flatten(2)[..., taps.to(kernel.device)])
        return found.unflatten(-1, (positions, pixels)).transpose(1, 2).reshape(dense.weight.shape)

    def lower(weight: Tensor) -> Tensor:
        picked = weight.reshape(matrix).transpose(1, 2).flatten(2)[..., entries.to(weight.device)]
        found = weight.new_zeros(*picked.shape[:2], len(seen)).index_add_(2, taps.to(weight.device), picked)
        return found.reshape(conv.weight.shape)

    outer = f"{name}.weight"
    found = {"weight": Within(outer, kappa, lift, lower, None if whole else lambda: gram.to(conv.weight))}
    if conv.bias is not None and dense.bias is not None:
        found["bias"] = Within(
            f"{name}.bias",
            float(positions),
            lambda bias: bias.repeat_interleave(positions),
            lambda bias: bias.unflatten(0, (-1, positions)).sum(-1),
        )
    return found


def _seen(conv: nn.Conv2d, dense: Linear2d) -> Tensor | None:
    """(taps, positions): 1 + the pixel that a tap of the kernel sees from a position, 0 where that is a padded zero."""
    numbers = torch.arange(1.0, math.prod(dense.size) + 1, dtype=torch.float64).reshape(1, 1, *dense.size)
    try:
        padded = pad_image(numbers, conv.kernel_size, conv.padding, conv.dilation, conv.padding_mode)
    except RuntimeError:  # torch's own limits on circular and reflected padding
        return None
    spans = [apart * (taps - 1) + 1 for apart, taps in zip(conv.dilation, conv.kernel_size, strict=True)]
    steps = zip(padded.shape[2:], spans, conv.stride, strict=True)
    if tuple((length - span) // step + 1 for length, span, step in steps) != dense.out_size:
        return None
    return image_patches(padded, conv.kernel_size, conv.stride, "valid", conv.dilation, "zeros")[0].long()


def _gram(taps: Tensor, entries: Tensor, count: int) -> Tensor:
    """Rᵀ R (taps, taps): how many entries of the matrix two taps are both written into."""
    places = entries.unique(return_inverse=True)[1]
    written = torch.zeros(count, int(places.max()) + 1, dtype=torch.float64)
    written.index_put_((taps, places), torch.ones(len(taps), dtype=torch.float64), accumulate=True)
    return written @ written.mT
