"""Posteriors of laplace-torch over the declared pathways: fitted to data, as named tensors, and restored from them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from laplace import Laplace
from laplace.baselaplace import FullLaplace, KronLaplace, ParametricLaplace
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.laplace.backend import PathwayGGN, ReducedPathwayGGN
from bayesws.evidence.laplace.kron import PathwayKron
from bayesws.evidence.likelihood import Categorical, Gaussian, Likelihood, likelihood_named
from bayesws.evidence.objective import resolve_prior
from bayesws.layers.contract import declarations, frozen, named_pathways

Prior = Mapping[str, Tensor | float] | float | None
HELD = ("full", "kron", "diag")  # kinds of curvature that laplace-torch holds


@contextmanager
def frozen_hyperparameters(net: nn.Module) -> Iterator[None]:
    """Within it nothing but the pathways' weights requires a gradient: the place to build `Laplace` in.

    Raises:
        ValueError: a parameter that nothing declares.
    """
    weights = {id(pathway.parameter) for _, pathway in named_pathways(net)}
    with frozen(p for p in net.parameters() if id(p) not in weights):
        yield


def prior_precisions(net: nn.Module, prior: Prior = None) -> Tensor:
    """Λ as laplace-torch takes it: δ of every weight tensor, in the order of `net.parameters()`; differentiable.

    Args:
        net: the network.
        prior: log precisions by pathway, as for `log_evidence`; None takes the layers' own.

    Raises:
        ValueError: a name that is not a pathway; another precision than a soft stack's own, which shapes its kernel.
    """
    log_precisions = resolve_prior(net, prior)
    for layer, (_, declaration) in declarations(net).items():
        for pathway in declaration.pathways if declaration.shaped_by_precisions else ():
            name = f"{layer}.{pathway.name}" if layer else pathway.name
            if not torch.equal(log_precisions[name].detach(), cast(Tensor, pathway.log_precision).detach()):
                raise ValueError(
                    f"prior for {name!r}: the stack is soft and takes its kernel's shape from the layer's own log "
                    "precisions; set these"
                )
    deltas = {id(p.parameter): log_precisions[name].exp().to(p.parameter) for name, p in named_pathways(net)}
    return torch.stack([deltas[id(p)] for p in net.parameters() if id(p) in deltas])


def fitted_posterior(
    net: nn.Module,
    data: Any,
    likelihood: str | Likelihood = "classification",
    curvature: str | Curvature = "kron",
    prior: Prior = None,
    batch_size: int = 250,
    **settings: Any,
) -> ParametricLaplace:
    """p(θ | D) ≈ N(θ*, (H + Λ)⁻¹) as a fitted `Laplace` of laplace-torch, with all that it offers.

    Its `log_marginal_likelihood()` equals `log_evidence(net, data, likelihood, curvature, prior)`, and so do the
    gradients in precisions, noise and structure; under torch.no_grad() none are kept.

    Args:
        net: the network at its MAP weights θ*; put in eval mode.
        data, likelihood, curvature, prior, batch_size: as for `log_evidence`.
        settings: of laplace-torch, such as `temperature` or `enable_backprop`.

    Raises:
        ValueError: an unknown curvature, data that does not fit, parameters that cannot be treated.
    """
    la = _unfitted(net, likelihood, curvature, prior, **settings)
    device = next(net.parameters()).device
    batches = data if isinstance(data, Batches) else Batches(data, batch_size, device)
    la.fit(cast(DataLoader, _Loader(batches)))
    with torch.no_grad():
        la.n_outputs = net(next(iter(batches))[0][:1]).numel()  # laplace-torch counts the last dimension alone
    return la


def as_held(curvature: Curvature) -> Curvature:
    """The curvature that laplace-torch can hold in the place of another: all data, and no joint blocks of layers."""
    if curvature.kind in HELD:
        return replace(curvature.exact(), exact_up_to=0)
    return Curvature("kron")


def curvature_tensors(la: ParametricLaplace) -> dict[str, Tensor]:
    """H of a posterior as named tensors, for `restored_posterior`: "H", or "0.0", "0.1", "1.0", ... of the factors."""
    if isinstance(la, KronLaplace):
        kfacs = cast(PathwayKron, la.H_facs).kfacs
        return {f"{i}.{k}": f.detach() for i, factors in enumerate(kfacs) for k, f in enumerate(factors)}
    return {"H": la.H.detach()}


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """The kind of curvature that tensors of `curvature_tensors` are of."""
    return "kron" if "H" not in tensors else "full" if tensors["H"].ndim == 2 else "diag"


def restored_posterior(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    likelihood: str | Likelihood = "classification",
    curvature: str | Curvature = "kron",
    prior: Prior = None,
) -> ParametricLaplace:
    """The posterior whose `curvature_tensors` are given, without a pass over the data; it knows no data fit.

    Raises:
        ValueError: tensors that do not fit the network.
    """
    la = _unfitted(net, likelihood, curvature, prior)
    la.mean = parameters_to_vector(la.params).detach()
    tensors = {name: tensor.to(la.mean.device) for name, tensor in tensors.items()}
    try:
        if isinstance(la, KronLaplace):
            counts = [1 if p.ndim == 1 else 2 for p in la.params]
            la.H_facs = PathwayKron([[tensors[f"{i}.{k}"] for k in range(n)] for i, n in enumerate(counts)])
            la.H = la.H_facs.decompose()
            size = sum(len(vector[0]) * (len(vector[-1]) if len(vector) > 1 else 1) for vector in la.H.eigenvalues)
        else:
            la.H = tensors["H"]
            size = len(la.H)
    except KeyError as error:
        raise ValueError(f"no tensor {error} of a curvature {curvature!r} of this network") from error
    if size != la.n_params:
        raise ValueError(f"a curvature of {size} weights: the network has {la.n_params}")
    return la


@torch.no_grad()
def output_moments(la: ParametricLaplace, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs f (batch, C) of the linearised network and their covariance J (H + Λ)⁻¹ Jᵀ (batch, C, C).

    Goes through the data in steps that keep Jacobians below JACOBIAN_ENTRIES.
    """
    root = None
    if isinstance(la, FullLaplace):  # laplace-torch would form the covariance of the weights anew for every step
        root = torch.linalg.cholesky(la.posterior_precision.double())
    outputs = la.model(x[:1]).numel()
    means, covariances = [], []
    for part in x.split(max(1, JACOBIAN_ENTRIES // (outputs * la.n_params))):
        jacobian, mean = la.backend.jacobians(part)
        if root is None:
            covariance = la.functional_variance(jacobian)
        else:
            half = torch.linalg.solve_triangular(root, jacobian.flatten(0, 1).mT.double(), upper=False)
            half = half.unflatten(1, jacobian.shape[:2]).movedim(0, -1)
            covariance = (half @ half.mT).to(mean)
        means.append(mean)
        covariances.append(covariance)
    return torch.cat(means), torch.cat(covariances)


JACOBIAN_ENTRIES = 2**24  # 64 MiB in float32


def _unfitted(
    net: nn.Module, likelihood: str | Likelihood, curvature: str | Curvature, prior: Prior, **settings: Any
) -> ParametricLaplace:
    asked = curvature_named(curvature)
    if asked.kind not in HELD:
        raise ValueError(f"curvature={asked.kind!r}: laplace-torch holds {', '.join(HELD)}")
    model = likelihood_named(likelihood)
    known = model.name if isinstance(model, Categorical | Gaussian) else "regression"
    if isinstance(model, Gaussian):
        settings["sigma_noise"] = model.log_noise.exp()
    elif not isinstance(model, Categorical):
        settings["backend_kwargs"] = {"loss": model}
    deltas = prior_precisions(net, prior)
    with frozen_hyperparameters(net):
        la = Laplace(
            net,
            known,
            subset_of_weights="all",
            hessian_structure=asked.kind,
            prior_precision=deltas,
            backend=ReducedPathwayGGN if asked.kfac == "reduce" else PathwayGGN,
            **settings,
        )
    return cast(ParametricLaplace, la)


class _Loader:
    """Batches as laplace-torch reads them: an iterable whose `dataset` has a length."""

    def __init__(self, batches: Batches) -> None:
        self.dataset = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.dataset)
