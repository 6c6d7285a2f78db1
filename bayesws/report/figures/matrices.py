"""Pictures of a layer's matrices and kernels."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from bayesws.report.figures.drawing import MINUS, PLUS, TONES, WIDTH, new_figure

MOST = 12  # matrices of one figure
OUTLINED = 64  # rows of the largest matrix whose nearest permutation is outlined
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def stack_figure(matrices: Tensor, permutations: Tensor | None = None, axis: int = 1, letter: str = "R") -> Figure:
    """Every matrix of a stack as an image, opacity the root of an entry, the nearest permutation's entries outlined.

    Args:
        matrices: (G, d, d); the first MOST are shown.
        permutations: (G, d), the nearest ones; None outlines nothing.
        axis: positions of the group axis, whose blocks are told apart by lines.
        letter: name of the matrices.
    """
    shown, d = min(len(matrices), MOST), matrices.shape[-1]
    columns = min(shown, 4 if d <= 16 else 2 if d <= 128 else 1)
    rows = -(-shown // columns)
    side = WIDTH / max(columns, 2)
    figure, axes = new_figure(rows * (side + 0.2), rows, columns)
    for panel in axes[shown:]:
        panel.set_axis_off()
    for g, panel in enumerate(axes[:shown]):
        _image(panel, matrices[g].clamp(min=0).sqrt().numpy())  # a uniform row should not look empty
        for line in range(d // axis, d, d // axis) if axis > 1 else ():
            for draw in (panel.axhline, panel.axvline):
                draw(line, color=TONES["rule"], linewidth=0.6, zorder=2)
        if permutations is not None and d <= OUTLINED:
            outlines = [Rectangle((column, row), 1, 1) for row, column in enumerate(permutations[g].tolist())]
            panel.add_collection(
                PatchCollection(outlines, facecolor="none", edgecolor=TONES["ink"], linewidth=0.7 if d < 20 else 0.4)
            )
        panel.set_title(f"{letter}{g + 1}".translate(SUBSCRIPTS), pad=3)
    return figure


def kernel_figure(tiles: Sequence[Sequence[Tensor]], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Kernels side by side: green is positive, orange negative, the darker the larger, on one scale.

    Args:
        tiles: matrices, by row and column.
        rows, columns: their names.
    """
    largest = max(float(tile.abs().max()) for row in tiles for tile in row) or 1.0
    height, width = tiles[0][0].shape
    each = (WIDTH - 0.5) / len(columns)
    down = min(each, 0.9) * height / width if width > height else min(each, 0.9)
    figure, axes = new_figure(len(rows) * (down + 0.06) + 0.25, len(rows), len(columns))
    for number, panel in enumerate(axes):
        row, column = divmod(number, len(columns))
        _image(panel, tiles[row][column].numpy() / largest)
        if row == 0:
            panel.set_title(columns[column], pad=3)
        if column == 0:
            panel.set_ylabel(rows[row], rotation=0, ha="right", va="center", color=TONES["ink"])
    return figure


def _image(panel: Axes, values: np.ndarray) -> None:
    """Values in [-1, 1] as opacity of one of two tones, which does on white and on black."""
    pixels = np.zeros((*values.shape, 4), dtype=np.uint8)
    pixels[values >= 0, :3], pixels[values < 0, :3] = PLUS, MINUS
    pixels[..., 3] = np.round(255 * np.abs(values).clip(0, 1))
    height, width = values.shape
    panel.imshow(pixels, interpolation="none", extent=(0, width, height, 0), aspect="equal")
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(visible=True, color=TONES["grey"], linewidth=0.6)
