"""Networks made of sharing layers."""

from bayesws.models.wscnn import WSCNN

__all__ = ["WSCNN"]
