"""Our curvature behind laplace-torch 0.3, unpatched; the only file that imports it.

    with frozen_hyperparameters(net):
        la = Laplace(net, "classification", subset_of_weights="all", hessian_structure="kron",
                     prior_precision=prior_precisions(net), backend=PathwayGGN)
    la.fit(loader)

`posterior(net, data)` takes these steps. laplace-torch counts every parameter that requires a gradient when `Laplace`
is built as a weight, so log precisions and logits must not, then; those that do again when `fit` is called receive the
gradient of the log evidence. A soft stack's free weights take their shape from the layer's own log precisions.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from bayesws.evidence.batches import Batches
from bayesws.evidence.by_batch import Probes, batch_factors, batch_jacobians
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.likelihood import Categorical, Gaussian, likelihood_named
from bayesws.evidence.objective import resolve_prior
from bayesws.layers.contract import (
    Factors,
    declarations,
    named_pathways,
    shaping_precisions,
    structure,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # its dependencies script functions as they are imported
    from laplace import Laplace
    from laplace.baselaplace import FullLaplace, KronLaplace, ParametricLaplace
    from laplace.curvature.curvature import GGNInterface
    from laplace.utils.matrix import Kron, KronDecomposed

Prior = Mapping[str, Tensor | float] | float | None
HELD = ("full", "kron", "diag")
Kfacs = Any  # a list of one or two matrices; laplace-torch's own hints promise tuples where it hands over lists


class PathwayGGN(GGNInterface):
    """The generalised Gauss-Newton matrix of the declared pathways, as laplace-torch's backend.

    H = Σ_n J_nᵀ S_n S_nᵀ J_n with S Sᵀ the Hessian of the loss in the outputs; the loss is summed, ½ (y - f)² for
    regression. Loss and curvature are differentiable in the structure where it requires a gradient when `fit` is
    called, and are cut off from everything otherwise.

    Args:
        model: a network as `log_evidence` takes it.
        likelihood: "classification" or "regression".
        last_layer: must be False: laplace-torch would cut the network open.
        subnetwork_indices: rows of the weight vector that a subnetwork keeps; "full" and "diag" only.
        dict_key_x, dict_key_y: ignored; inputs are tensors.

    Raises:
        ValueError: `last_layer`, a parameter that nothing declares, data that does not fit.
    """

    kfac = "expand"

    def __init__(
        self,
        model: nn.Module,
        likelihood: str,
        last_layer: bool = False,
        subnetwork_indices: torch.LongTensor | None = None,
        dict_key_x: str = "input_ids",
        dict_key_y: str = "labels",
    ) -> None:
        if last_layer:
            raise ValueError("subset_of_weights='last_layer' with PathwayGGN: expected 'all' or 'subnetwork'")
        super().__init__(model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y)
        weights = {id(pathway.parameter) for _, pathway in named_pathways(model)}
        self.params_dict = {name: p for name, p in model.named_parameters() if id(p) in weights}
        self.params = list(self.params_dict.values())
        self._loss: Categorical | Gaussian = Categorical() if likelihood == "classification" else Gaussian(learn=False)

    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """∂f/∂θ (batch, C, P) and f (batch, C); differentiable, in x too, with `enable_backprop`."""
        outputs, columns = self._pull_back(x, _identity, enable_backprop)
        return columns.transpose(0, 1), outputs.flatten(1)

    def gradients(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Every datum's gradient of its loss (batch, P), and the summed loss."""
        outputs, columns = self._pull_back(x, lambda f: self._residuals(f, y).unsqueeze(-1), False)
        return columns[0], self._summed_loss(outputs, y)

    def full(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Summed loss and H (P, P)."""
        outputs, columns = self._pull_back(x, self._loss.hessian_root, _is_learned(self.model))
        rows = columns.flatten(0, 1)
        return self._summed_loss(outputs, y), rows.mT @ rows

    def diag(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Summed loss and the diagonal of H (P,)."""
        outputs, columns = self._pull_back(x, self._loss.hessian_root, _is_learned(self.model))
        return self._summed_loss(outputs, y), columns.square().sum((0, 1))

    def kron(self, x: Any, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, "PathwayKron"]:
        """Summed loss and this batch's share of the KFAC-expand factors of N data, a Kronecker block a pathway."""
        root, learned = self._loss.hessian_root, _is_learned(self.model)
        outputs, factors = batch_factors(self.model, self.params, x, N, root, learned, self.kfac)
        return self._summed_loss(outputs, y), PathwayKron(
            [_as_kfacs(p, blocks) for p, blocks in zip(self.params, factors, strict=True)]
        )

    def _pull_back(self, x: Any, probes: Probes, create_graph: bool) -> tuple[Tensor, Tensor]:
        outputs, columns = batch_jacobians(self.model, self.params, x, probes, create_graph)
        return outputs, columns if self.subnetwork_indices is None else columns[..., self.subnetwork_indices]

    def _summed_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        self._loss.check(outputs, y)
        if isinstance(self._loss, Gaussian):
            return 0.5 * (y - outputs).square().sum()
        return -self._loss.log_prob(outputs, y)

    def _residuals(self, outputs: Tensor, y: Tensor) -> Tensor:
        if isinstance(self._loss, Gaussian):
            return outputs - y
        return outputs.softmax(-1) - nn.functional.one_hot(y.long(), outputs.shape[-1])


class ReducedPathwayGGN(PathwayGGN):
    """The same with KFAC-reduce for its Kronecker factors."""

    kfac = "reduce"


def _is_learned(net: nn.Module) -> bool:
    """Whether the evidence is to be differentiable in anything that shapes a kernel."""
    learnable = [*structure(net), *shaping_precisions(net)]
    return torch.is_grad_enabled() and any(t.requires_grad for t in learnable)


def _identity(outputs: Tensor) -> Tensor:
    classes = outputs[0].numel()
    return torch.eye(classes, dtype=outputs.dtype, device=outputs.device).expand(len(outputs), classes, classes)


# Kronecker factors as laplace-torch sums and inverts them


def _as_kfacs(parameter: nn.Parameter, blocks: Factors) -> Kfacs:
    """[B ⊗ A] of a vector, [B, A] of one block, or both stacked, (K, ·, ·), where K blocks lie along dimension 1."""
    if len(blocks) == 1:
        ((a, b),) = blocks
        return [torch.kron(b, a)] if parameter.ndim == 1 else [b, a]
    if parameter.ndim < 2 or parameter.shape[1] != len(blocks) or len(blocks[0][1]) != len(parameter):
        raise ValueError(
            f"hessian_structure='kron' for weights of shape {tuple(parameter.shape)} in {len(blocks)} groups: expected "
            "one Kronecker product a tensor; use 'full' or 'diag', or bayesws.log_evidence, which takes them"
        )
    return [torch.stack([b for _, b in blocks]), torch.stack([a for a, _ in blocks])]


class PathwayKron(Kron):
    """laplace-torch's Kron with what pathways need beyond it.

    The free weights (out, G, in, d) of a soft stack have a block for every group element, which a single Kronecker
    product cannot hold: their factors are stacked, (G, out, out) and (G, in·d, in·d).

    Args:
        kfacs: by parameter tensor, [matrix], [B, A] or [stacked B, stacked A].
    """

    def __init__(self, kfacs: list[Kfacs]) -> None:
        super().__init__(kfacs)

    def __add__(self, other: Kron) -> "PathwayKron":
        if len(self) != len(other):
            raise ValueError(
                f"Laplace was built for {len(other)} parameter tensors, the network declares {len(self)}: build it "
                "where log precisions and logits are frozen, such as within frozen_hyperparameters(net)"
            )
        # laplace-torch starts from zeros, in shapes that it guesses from the parameters
        return PathwayKron(
            [
                [x + y if x.shape == y.shape else x for x, y in zip(mine, theirs, strict=True)]
                for mine, theirs in zip(self.kfacs, other.kfacs, strict=True)
            ]
        )

    __radd__ = __add__

    def __mul__(self, scalar: float | Tensor) -> "PathwayKron":
        return PathwayKron([[scalar ** (1 / len(kfacs)) * f for f in kfacs] for kfacs in self.kfacs])

    __rmul__ = __mul__

    def decompose(self, damping: bool = False) -> "PathwayKronDecomposed":
        """Eigenvalues and eigenvectors of every block; in float64, as those of dead units are tiny and repeated."""
        blocks, owners, order = self._blocks()
        vectors, values = [], []
        for block in blocks:
            solved = [torch.linalg.eigh(factor.double()) for factor in block]
            values.append([e.eigenvalues.clamp(min=0).to(f) for e, f in zip(solved, block, strict=True)])
            vectors.append([e.eigenvectors.to(f) for e, f in zip(solved, block, strict=True)])
        return PathwayKronDecomposed(vectors, values, owners, order, damping=damping)

    def _blocks(self) -> tuple[list[Kfacs], Tensor, Tensor]:
        """The blocks one by one, the parameter tensor of each, and the weights' places in the order of the blocks."""
        start, owners, order = 0, [], []
        blocks: list[Kfacs] = []
        for owner, kfacs in enumerate(self.kfacs):
            several = list(zip(*kfacs, strict=True)) if kfacs[0].ndim == 3 else [tuple(kfacs)]
            size = sum(block[0].shape[0] * block[-1].shape[0] ** (len(block) - 1) for block in several)
            places = torch.arange(start, start + size).reshape(len(several[0][0]), len(several), -1)
            for k, block in enumerate(several):
                blocks.append(list(block))
                owners.append(owner)
                order.append(places[:, k].flatten())
            start += size
        device = self.kfacs[0][0].device
        return blocks, torch.tensor(owners, device=device), torch.cat(order).to(device)

    def _bmm(self, W: Tensor) -> Tensor:
        blocks, _, order = self._blocks()
        return Kron(blocks)._bmm(W[..., order])[..., order.argsort()]

    def logdet(self) -> Tensor:
        """log det H."""
        return Kron(self._blocks()[0]).logdet()

    def diag(self) -> Tensor:
        """The diagonal of H."""
        blocks, _, order = self._blocks()
        return Kron(blocks).diag()[order.argsort()]

    def to_matrix(self) -> Tensor:
        """H (P, P), for tests."""
        blocks, _, order = self._blocks()
        back = order.argsort()
        return Kron(blocks).to_matrix()[back][:, back]


class PathwayKronDecomposed(KronDecomposed):
    """laplace-torch's KronDecomposed over blocks, each with the precision of the parameter tensor that owns it.

    Args:
        eigenvectors, eigenvalues: by block.
        owners: index of the parameter tensor by block.
        order: places in the weight vector in the order of the blocks, (P,).
        deltas: precisions by block; zero to start with.
        damping: as in laplace-torch, and kept when a prior is added.
    """

    def __init__(
        self,
        eigenvectors: list[Kfacs],
        eigenvalues: list[Kfacs],
        owners: Tensor,
        order: Tensor,
        deltas: Tensor | None = None,
        damping: bool = False,
    ) -> None:
        super().__init__(eigenvectors, eigenvalues, deltas, damping)
        self.owners, self.order = owners, order

    def __add__(self, deltas: Tensor) -> Self:
        by_block = deltas[self.owners] if deltas.ndim == 1 and len(deltas) > 1 else deltas
        return self._with(self.eigenvalues, self.deltas + by_block)

    def __mul__(self, scalar: float | Tensor) -> Self:
        """H · scalar; unlike laplace-torch's own, differentiable in the scalar, and so in the noise."""
        return self._with([[scalar ** (1 / len(ls)) * v for v in ls] for ls in self.eigenvalues], self.deltas)

    __radd__ = __add__
    __rmul__ = __mul__

    def _with(self, eigenvalues: list[Kfacs], deltas: Tensor) -> Self:
        return type(self)(self.eigenvectors, eigenvalues, self.owners, self.order, deltas, self.damping)

    def _bmm(self, W: Tensor, exponent: float = -1) -> Tensor:
        return super()._bmm(W[..., self.order], exponent)[..., self.order.argsort()]

    def inv_square_form(self, W: Tensor) -> Tensor:
        """W (H + Λ)⁻¹ Wᵀ, (batch, C, C), as a square: symmetric, no eigenvalue below zero, half the products."""
        if self.damping:
            return super().inv_square_form(W)
        W, start, total = W[..., self.order], 0, W.new_zeros(())
        for vectors, values, delta in zip(self.eigenvectors, self.eigenvalues, self.deltas, strict=True):
            rows, size = len(values[0]), values[0].numel() * (values[-1].numel() if len(values) > 1 else 1)
            block = W[..., start : start + size].unflatten(-1, (rows, -1))
            spectrum = values[0][:, None] * values[1] if len(values) > 1 else values[0][:, None]
            block = vectors[0].mT @ block @ vectors[1] if len(vectors) > 1 else vectors[0].mT @ block
            root = (block * (spectrum + delta).rsqrt()).flatten(-2)
            total, start = total + root @ root.mT, start + size
        return total

    def diag(self, exponent: float = 1) -> Tensor:
        """The diagonal of (H + Λ)^exponent."""
        return super().diag(exponent)[self.order.argsort()]

    def to_matrix(self, exponent: float = 1) -> Tensor:
        """(H + Λ)^exponent, (P, P), for tests."""
        back = self.order.argsort()
        return super().to_matrix(exponent)[back][:, back]


# Posteriors


@contextmanager
def frozen_hyperparameters(net: nn.Module) -> Iterator[None]:
    """Within it nothing but the pathways' weights requires a gradient: the place to build `Laplace` in.

    Raises:
        ValueError: a parameter that nothing declares.
    """
    weights = {id(pathway.parameter) for _, pathway in named_pathways(net)}
    frozen = [p for p in net.parameters() if p.requires_grad and id(p) not in weights]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_()


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
        for pathway in declaration.pathways if declaration.stack is not None else ():
            name = f"{layer}.{pathway.name}" if layer else pathway.name
            if not torch.equal(log_precisions[name].detach(), cast(Tensor, pathway.log_precision).detach()):
                raise ValueError(
                    f"prior for {name!r}: the stack is soft and takes its kernel's shape from the layer's own log "
                    "precisions; set these"
                )
    deltas = {id(p.parameter): log_precisions[name].exp().to(p.parameter) for name, p in named_pathways(net)}
    return torch.stack([deltas[id(p)] for p in net.parameters() if id(p) in deltas])


def posterior(
    net: nn.Module,
    data: Any,
    likelihood: str | Categorical | Gaussian = "classification",
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
        return replace(curvature, samples=None, subset=1.0, exact_up_to=0)
    return Curvature("kron")


def curvature_tensors(la: ParametricLaplace) -> dict[str, Tensor]:
    """H of a fitted posterior as named tensors, for `restored`: "H", or "0.0", "0.1", "1.0", ... of the factors."""
    if isinstance(la, KronLaplace):
        kfacs = cast(PathwayKron, la.H_facs).kfacs
        return {f"{i}.{k}": f.detach() for i, factors in enumerate(kfacs) for k, f in enumerate(factors)}
    return {"H": la.H.detach()}


def restored(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    likelihood: str | Categorical | Gaussian = "classification",
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
    net: nn.Module, likelihood: str | Categorical | Gaussian, curvature: str | Curvature, prior: Prior, **settings: Any
) -> ParametricLaplace:
    asked = curvature_named(curvature)
    if asked.kind not in HELD:
        raise ValueError(f"curvature={asked.kind!r}: laplace-torch holds {', '.join(HELD)}")
    model = likelihood_named(likelihood)
    if isinstance(model, Gaussian):
        settings["sigma_noise"] = model.log_noise.exp()
    deltas = prior_precisions(net, prior)
    with frozen_hyperparameters(net):
        la = Laplace(
            net,
            model.name,
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
