"""Maximum pooling that turns and flips of the image pass through."""

import torch.nn.functional as F
from torch import Tensor


def halved(features: Tensor) -> Tensor:
    """Maximum pooling with stride 2 of the last two axes of (batch, channels, ..., H, W), at least 2 × 2.

    Windows of 2 for even sides and of 3 for odd ones: they lie symmetrically, so turns and flips pass through.
    """
    height, width = features.shape[-2:]
    pooled = F.max_pool2d(features.flatten(1, -3), (2 + height % 2, 2 + width % 2), stride=2)
    return pooled.unflatten(1, features.shape[1:-2])
