"""Training images whose motions are drawn anew whenever they are looked at, as in the published protocols."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bayesws.data.images import ImageData
from bayesws.data.seeding import generator
from bayesws.data.tasks import task as task_named


def moving(images: ImageData, task: str, batch_size: int, seed: int) -> DataLoader:
    """Batches of training images, each image moved by a fresh draw of the task's motion in every epoch.

    Args:
        images: as they are without the task.
        task: a name that `tasks.task` knows.
        batch_size: images a batch.
        seed: of the order and of the motions.

    Raises:
        ValueError: an unknown task, a batch size below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    motion, draws = task_named(task), generator(seed, "moving")

    def moved(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = (torch.stack(column) for column in zip(*pairs, strict=True))
        return motion.apply(x, y, draws)

    order = generator(seed, "order")
    return DataLoader(TensorDataset(*images.train), batch_size, shuffle=True, generator=order, collate_fn=moved)
