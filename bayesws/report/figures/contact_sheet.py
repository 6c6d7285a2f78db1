"""A picture of an image set: some images of every class."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bayesws.io.files import write_whole

SHOWN = 8  # images of a class


def contact_sheet(data: tuple[Tensor, Tensor], classes: int) -> Figure:
    """A row for every class, its first images in it, all with one scale of grey."""
    x, y = data
    figure = Figure(figsize=(0.9 + 0.75 * SHOWN, 0.75 * classes + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(classes, SHOWN, squeeze=False)
    low, high = float(x.min()), float(x.max())
    for label in range(classes):
        mine = x[y == label][:SHOWN]
        for place in range(SHOWN):
            axis = axes[label, place]
            axis.axis("off")
            if place < len(mine):
                image = (mine[place] - low) / max(high - low, 1e-12)
                colours = len(image) == 3
                picture = image.permute(1, 2, 0) if colours else image.mean(0)
                axis.imshow(picture.numpy(), cmap=None if colours else "gray_r", vmin=0, vmax=1)
        axes[label, 0].set_title(str(label), loc="left", x=-0.35, y=0.3, fontsize=10)
    return figure


def save_contact_sheet(data: tuple[Tensor, Tensor], classes: int, path: Path) -> None:
    """Write `contact_sheet` as PNG, whole or not at all."""
    write_whole(path, lambda draft: contact_sheet(data, classes).savefig(draft, dpi=120, format="png"))
