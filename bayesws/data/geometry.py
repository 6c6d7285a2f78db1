"""Moving images: one motion an image, the whole batch at once.

Directions are those of `torch.rot90`: a positive angle turns the picture anticlockwise as it is shown. What
moves in from outside is zero.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CHUNK = 4096  # images resampled at once: a sampling grid is as large as two channels


def quarter_turn(
    x: Float[Tensor, "batch channels side1 side2"], turns: Int[Tensor, " batch"]
) -> Float[Tensor, "batch channels side1 side2"]:
    """Each image turned by its own multiple of 90 degrees: ``out[n] = rot90(x[n], turns[n])``.

    Raises:
        ValueError: if the images are not square.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    >>> quarter_turn(x, torch.tensor([1])).flatten().tolist()
    [2.0, 4.0, 1.0, 3.0]
    """
    height, width = x.shape[-2:]
    if height != width:
        raise ValueError(
            f"quarter turns need square images, got height {height} and width {width};"
            " crop or pad them, or try the task 'half-turned' or 'flipped'"
        )
    turns = turns.to(x.device) % 4
    out = x.clone()
    for k in (1, 2, 3):
        out[turns == k] = torch.rot90(x[turns == k], k, dims=(-2, -1))
    return out


def mirror(
    x: Float[Tensor, "batch channels height width"],
    which: Bool[Tensor, " batch"],
    axes: tuple[int, ...] = (-1,),
) -> Float[Tensor, "batch channels height width"]:
    """The chosen images reversed along ``axes``: (-1,) is left-right, (-2, -1) a half turn."""
    return torch.where(which.to(x.device)[:, None, None, None], x.flip(axes), x)


def shift(
    x: Float[Tensor, "batch channels height width"], down: Int[Tensor, " batch"], right: Int[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Each image moved by whole pixels: ``out[n, :, i, j] = x[n, :, i - down[n], j - right[n]]``, else zero.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    >>> shift(x, torch.tensor([1]), torch.tensor([0])).flatten().tolist()
    [0.0, 0.0, 1.0, 2.0]
    """
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device) - down.to(x.device)[:, None]
    columns = torch.arange(width, device=x.device) - right.to(x.device)[:, None]
    row_inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    column_inside = ((columns >= 0) & (columns < width))[:, None, None, :]
    moved = x.gather(2, rows.clamp(0, height - 1)[:, None, :, None].expand_as(x))
    moved = moved.gather(3, columns.clamp(0, width - 1)[:, None, None, :].expand_as(x))
    return moved * (row_inside & column_inside)


def rotate(
    x: Float[Tensor, "batch channels height width"], degrees: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Each image turned anticlockwise about its centre by its own angle in degrees, bilinear."""
    angle = torch.deg2rad(degrees.to(torch.float64))
    cos, sin = angle.cos(), angle.sin()
    return _resample(x, torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2))


def rescale(
    x: Float[Tensor, "batch channels height width"], factor: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Each image scaled about its centre by its own factor (below 1: smaller), bilinear, not anti-aliased."""
    return _resample(x, torch.eye(2, dtype=torch.float64) / factor.to("cpu", torch.float64)[:, None, None])


def _resample(x: Tensor, matrix: Tensor) -> Tensor:
    """``out(p) = x(M p)``, p = (right, down) in pixels from the centre, M of shape (batch, 2, 2)."""
    size = torch.tensor([x.shape[-1], x.shape[-2]], dtype=matrix.dtype, device=matrix.device)
    # grid_sample's unit is half the image: M becomes D⁻¹ M D with D = diag(width, height) / 2
    theta = F.pad(matrix * size / size[:, None], (0, 1)).to(x)
    cuts = list(range(_CHUNK, len(x), _CHUNK))
    chunks = zip(x.tensor_split(cuts), theta.tensor_split(cuts), strict=True)
    return torch.cat(
        [
            F.grid_sample(part, F.affine_grid(t, list(part.shape), align_corners=False), align_corners=False)
            for part, t in chunks
        ]
    )
