"""Random motions of labelled images: what is drawn for each image, from a generator and nothing else."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from bayesws.data.geometry import mirror, quarter_turn, shift

Pair = tuple[Tensor, Tensor]


def stay(x: Tensor, y: Tensor, generator: Generator) -> Pair:
    """Nothing is done and nothing drawn."""
    return x, y


def turn(x: Tensor, y: Tensor, generator: Generator, relabel: bool = False) -> Pair:
    """k in {0, 1, 2, 3} quarter turns anticlockwise; with ``relabel`` the label becomes k."""
    turns = torch.randint(4, (len(x),), generator=generator)
    return quarter_turn(x, turns), turns.to(y) if relabel else y


def reverse(x: Tensor, y: Tensor, generator: Generator, axes: tuple[int, ...]) -> Pair:
    """With probability 1/2 the axes are reversed: (-1,) is a left-right flip, (-2, -1) a half turn."""
    return mirror(x, torch.randint(2, (len(x),), generator=generator).bool(), axes), y


def turn_and_flip(x: Tensor, y: Tensor, generator: Generator) -> Pair:
    """One of the eight motions of the square: e % 4 quarter turns, then a left-right flip if e > 3."""
    element = torch.randint(8, (len(x),), generator=generator)
    return mirror(quarter_turn(x, element % 4), element >= 4), y


def translate(x: Tensor, y: Tensor, generator: Generator, fraction: float) -> Pair:
    """A shift by whole pixels, uniform up to ``fraction`` of the side each way, zero where nothing moves in.

    Raises:
        ValueError: if that is less than one pixel.
    """
    height, width = x.shape[-2:]
    down_most, right_most = (math.floor(fraction * side + 1e-9) for side in (height, width))
    if down_most == right_most == 0:
        enough = math.ceil(1000 / max(height, width)) / 1000
        raise ValueError(
            f"'translated:{fraction:g}' moves images of {height}x{width} pixels by less than one pixel,"
            f" expected at least one; try 'translated:{enough:g}'"
        )
    down = torch.randint(-down_most, down_most + 1, (len(x),), generator=generator)
    right = torch.randint(-right_most, right_most + 1, (len(x),), generator=generator)
    return shift(x, down, right), y


def place(x: Tensor, y: Tensor, generator: Generator, relabel: bool = False) -> Pair:
    """In one of the four quadrants q of a canvas of twice the height and width; with ``relabel`` the label becomes
    4 y + q, q = 0 above on the left, then on the right, then below."""
    quadrants = torch.randint(4, (len(x),), generator=generator)
    height, width = x.shape[-2:]
    canvas = x.new_zeros(*x.shape[:-2], 2, height, 2, width)
    each = torch.arange(len(x))
    canvas[each, :, quadrants // 2, :, quadrants % 2] = x
    canvas = canvas.flatten(-2).flatten(-3, -2)
    return canvas, 4 * y + quadrants.to(y) if relabel else y


def vary(
    x: Tensor,
    y: Tensor,
    generator: Generator,
    move: Callable[[Tensor, Tensor], Tensor],
    low: float,
    high: float,
) -> Pair:
    """``move(x, t)`` with one t an image, uniform in [low, high)."""
    return move(x, low + (high - low) * torch.rand(len(x), generator=generator, dtype=torch.float64)), y
