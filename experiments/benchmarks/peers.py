"""Log evidence by the peers: laplace-torch with the backends Curvlinops, Asdl and BackPack."""

import copy
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

BACKENDS = {
    "CurvlinopsGGN": "laplace.curvature.curvlinops",
    "AsdlGGN": "laplace.curvature.asdl",
    "BackPackGGN": "laplace.curvature.backpack",
}
INSTALL = "pip install asdfghjkl backpack-for-pytorch"


class PeerMissing(ImportError):
    """A peer that is not installed, with the command that installs it."""


@dataclass(frozen=True)
class PeerEvidence:
    """What a peer finds at prior precision 1.

    Attributes:
        total: the log evidence, nats.
        log_determinants: log det(I + H) by parameter, in the order of `net.parameters()`.
    """

    total: float
    log_determinants: list[float]


def curvlinops(net: nn.Module, data: tuple[Tensor, Tensor], batch_size: int = 250, sampled: bool = False) -> "Peer":
    """The log evidence by laplace-torch and Curvlinops; right, weight sharing is KFAC-expand."""
    return Peer(net, data, "CurvlinopsGGN", batch_size, sampled)


def asdl(net: nn.Module, data: tuple[Tensor, Tensor], batch_size: int = 250, sampled: bool = False) -> "Peer":
    """The log evidence by laplace-torch and Asdl; right on plain layers that see their batch once."""
    return Peer(net, data, "AsdlGGN", batch_size, sampled)


def backpack(net: nn.Module, data: tuple[Tensor, Tensor], batch_size: int = 250, sampled: bool = False) -> "Peer":
    """The log evidence by laplace-torch and BackPack; its Kronecker factors of convolutions are scaled wrongly."""
    return Peer(net, data, "BackPackGGN", batch_size, sampled)


class Peer:
    """laplace-torch's Kronecker-factored Laplace with one backend, on its own copy of a network.

    Args:
        net: a network of stock layers; copied, since backends hook and mark the modules.
        data: inputs and labels.
        backend: one of BACKENDS.
        batch_size: how many data at once.
        sampled: one label a datum drawn from the model, in place of the exact GGN.

    Raises:
        PeerMissing: where the backend is not installed.
    """

    def __init__(
        self, net: nn.Module, data: tuple[Tensor, Tensor], backend: str, batch_size: int, sampled: bool
    ) -> None:
        try:
            self._laplace: Any = importlib.import_module("laplace")
            self._backend = getattr(importlib.import_module(BACKENDS[backend]), backend)
        except ImportError as error:
            raise PeerMissing(f"{backend} is not installed ({error}): {INSTALL}") from error
        self._net = copy.deepcopy(net).eval()
        self._options = {"stochastic": True} if sampled else None
        whole = TensorDataset(*data)
        # batches by one indexing each: the loader costs next to nothing
        self._loader = DataLoader(
            whole, batch_size=None, sampler=BatchSampler(SequentialSampler(whole), batch_size, False)
        )

    def __call__(self) -> PeerEvidence:
        """Fit, decompose and evaluate: what is timed."""
        fitted = self._laplace.Laplace(
            self._net,
            "classification",
            subset_of_weights="all",
            hessian_structure="kron",
            sigma_noise=1.0,
            prior_precision=1.0,
            backend=self._backend,
            backend_kwargs=self._options,
        )
        fitted.fit(self._loader)
        total = float(fitted.log_marginal_likelihood())
        return PeerEvidence(total, [_log_determinant(values) for values in fitted.H.eigenvalues])


def _log_determinant(eigenvalues: list[Tensor]) -> float:
    """Of I + A ⊗ B from the eigenvalues of its factors, or of one factor alone."""
    values = eigenvalues[0] if len(eigenvalues) == 1 else torch.outer(*eigenvalues)
    return float(torch.log1p(values).sum())
