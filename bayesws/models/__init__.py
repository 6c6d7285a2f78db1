"""Networks made of sharing layers, and their plain twins."""

from torch import nn

from bayesws.models.cnn import CNN
from bayesws.models.layerwise import LayerwiseNet
from bayesws.models.resnet import ResNet
from bayesws.models.wscnn import WSCNN
from bayesws.models.wsresnet import WSResNet

__all__ = ["CNN", "WSCNN", "LayerwiseNet", "ResNet", "WSResNet", "known_models"]


def known_models() -> dict[str, type[nn.Module]]:
    """The networks that a saved fit can be rebuilt from, by name; each keeps its arguments in `settings`."""
    return {model.__name__: model for model in (WSCNN, WSResNet, CNN, ResNet, LayerwiseNet)}
