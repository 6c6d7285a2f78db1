"""Networks made of sharing layers."""

from torch import nn

from bayesws.models.wscnn import WSCNN

__all__ = ["WSCNN", "known_models"]


def known_models() -> dict[str, type[nn.Module]]:
    """The networks that a saved fit can be rebuilt from, by name; each keeps its arguments in `settings`."""
    return {"WSCNN": WSCNN}
