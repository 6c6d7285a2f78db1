"""Image sets, and transformations that plant a symmetry in them or break one."""

from bayesws.data.catalogue import load
from bayesws.data.fresh import moving
from bayesws.data.images import ImageData
from bayesws.data.tasks import task_names, transform

__all__ = ["ImageData", "load", "moving", "task_names", "transform"]
