"""Which layers hold the maps of others: a dense map of all positions a convolution, that one a group convolution.

Of two modules side by side the freer one is then φ, and together they are φ + R θ (`contract.Within`).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayesws.layers.contract import Within
from bayesws.layers.group_conv import GroupConv2d
from bayesws.layers.linear2d import Linear2d
from bayesws.layers.patches import geometry_of, image_patches, pad_image

DISTINCT = 1e-6  # the least eigenvalue of Rᵀ R beside the largest
Places = dict[str, Within]  # by the inner module's pathways, "weight" and "bias"


def places_of(branches: Mapping[str, nn.Module]) -> Places:
    """Where pathways of modules that are added up lie within one another, by "module.pathway".

    Every module lies within at most one, the one with the fewest parameters that holds it, and holds at most one.
    """
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in branches.items()}
    found: Places = {}
    holding: set[str] = set()
    for inner in sorted(branches, key=sizes.__getitem__, reverse=True):
        for outer in sorted(branches, key=sizes.__getitem__):
            places = {} if outer in holding else _within(branches[inner], branches[outer], outer)
            if places:
                holding.add(outer)
                found |= {f"{inner}.{name}": place for name, place in places.items()}
                break
    return found


def _within(inner: nn.Module, outer: nn.Module, name: str) -> Places:
    if type(inner) is nn.Conv2d and isinstance(outer, Linear2d):
        return convolution_within(inner, outer, name)
    if isinstance(inner, GroupConv2d) and type(outer) is nn.Conv2d:
        return parts_within(inner, outer, name)
    return {}


def convolution_within(conv: nn.Conv2d, dense: Linear2d, name: str) -> Places:
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
    whole = torch.equal(gram, gram[0, 0] * torch.eye(len(gram), dtype=gram.dtype))
    kappa = float(gram[0, 0] if whole else values[-1])
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
    wider = positions * pixels / float(gram.trace())
    found = {"weight": Within(outer, kappa, lift, lower, None if whole else lambda: gram.to(conv.weight), wider)}
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


def parts_within(inner: GroupConv2d, conv: nn.Conv2d, name: str) -> Places:
    """Where a convolution of each part by itself lies within one of all channels: Rᵀ R = parts · I.

    R writes the kernel k into the diagonal, K[(s, o), (s, i), t] = k[o, i, t] for every part s.

    Args:
        inner: the convolution of parts.
        conv: that beside it; of another geometry, other channels or several groups it does not hold it.
        name: of the latter, in the names of the outer pathways.
    """
    parts = inner.parts
    channels = (parts * inner.in_channels, parts * inner.out_channels)
    alike = geometry_of(inner) == geometry_of(conv) and channels == (conv.in_channels, conv.out_channels)
    if conv.groups != 1 or not alike:
        return {}

    def lift(kernel: Tensor) -> Tensor:
        found = kernel.new_zeros(parts, inner.out_channels, parts, *kernel.shape[1:])
        each = torch.arange(parts, device=kernel.device)
        found[each, :, each] = kernel
        return found.flatten(2, 3).flatten(0, 1)

    def lower(weight: Tensor) -> Tensor:
        split = weight.unflatten(1, (parts, -1)).unflatten(0, (parts, -1))
        return split.diagonal(dim1=0, dim2=2).sum(-1)

    found = {"weight": Within(f"{name}.weight", float(parts), lift, lower, wider=float(parts))}
    if inner.bias is not None and conv.bias is not None:
        found["bias"] = Within(
            f"{name}.bias",
            float(parts),
            lambda bias: bias.repeat(parts),
            lambda bias: bias.unflatten(0, (parts, -1)).sum(0),
        )
    return found
