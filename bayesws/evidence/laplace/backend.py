"""Our curvature behind laplace-torch 0.3, unpatched.

    with frozen_hyperparameters(net):
        la = Laplace(net, "classification", subset_of_weights="all", hessian_structure="kron",
                     prior_precision=prior_precisions(net), backend=PathwayGGN)
    la.fit(loader)

`fitted_posterior(net, data)` takes these steps. laplace-torch counts every parameter that requires a gradient when
`Laplace` is built as a weight, so log precisions and logits must not, then; those that do again when `fit` is called
receive the gradient of the log evidence. A soft stack's free weights take their shape from the layer's own log
precisions.
"""

from typing import Any

import torch
from laplace.curvature.curvature import GGNInterface
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bayesws.evidence.by_batch import Probes, batch_factors, batch_jacobians
from bayesws.evidence.laplace.inputs import as_batch
from bayesws.evidence.laplace.kron import PathwayKron, as_kfacs
from bayesws.evidence.likelihood import Categorical, Gaussian, Likelihood
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import frozen, named_pathways, shaping_precisions, structure


class PathwayGGN(GGNInterface):
    """The generalised Gauss-Newton matrix of the declared pathways, as laplace-torch's backend.

    H = Σ_n J_nᵀ S_n S_nᵀ J_n with S Sᵀ the Hessian of the loss in the outputs; the loss is summed, ½ (y - f)² for
    regression. Loss and curvature are differentiable in the structure where it requires a gradient when `fit` is
    called, and are cut off from everything otherwise; so they are where targets are drawn, or the last layer is meant.

    Args:
        model: a network as `log_evidence` takes it; with `last_layer` any network within laplace-torch's
            FeatureExtractor, of which nothing but the last layer is looked at.
        likelihood: "classification" or "regression".
        last_layer: whether the weights are those of `model.last_layer` alone.
        subnetwork_indices: rows of the weight vector that a subnetwork keeps; "full" and "diag" only.
        dict_key_x: where in inputs that are mappings the batch is.
        dict_key_y: as laplace-torch reads its loaders.
        stochastic: whether S holds the loss's gradients at drawn targets, y ~ p(y | f), so that the Hessian is the mean
            of S Sᵀ: Fisher's matrix by Monte Carlo.
        num_samples: how many targets are drawn for a datum.
        loss: a likelihood beside laplace-torch's two, which then goes by "regression" there, at unit noise.

    Raises:
        ValueError: a parameter that nothing declares, data that does not fit, a `loss` to draw from.
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
        stochastic: bool = False,
        num_samples: int = 1,
        loss: Likelihood | None = None,
    ) -> None:
        if stochastic and loss is not None:
            raise ValueError(f"stochastic=True with {type(loss).__name__}: expected laplace-torch's own likelihoods")
        super().__init__(
            model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y, stochastic, num_samples
        )
        weights = {id(pathway.parameter) for _, pathway in named_pathways(self._model)}
        self.params_dict = {name: p for name, p in model.named_parameters() if id(p) in weights}
        self.params = list(self.params_dict.values())
        self._cut_off = [p for p in model.parameters() if id(p) not in weights] if last_layer else []
        known = Categorical() if likelihood == "classification" else Gaussian(learn=False)
        self._loss: Likelihood = known if loss is None else loss

    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """∂f/∂θ (batch, C, P) and f (batch, C); differentiable, in x too, with `enable_backprop`."""
        outputs, columns = self._pull_back(x, _identity, enable_backprop)
        return columns.transpose(0, 1), outputs.flatten(1)

    def last_layer_jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """The same; exact whatever the network does to the last layer's outputs."""
        return self.jacobians(x, enable_backprop)

    def gradients(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Every datum's gradient of its loss (batch, P), and the summed loss."""
        outputs, columns = self._pull_back(x, lambda f: self._residuals(f, y).unsqueeze(-1), False)
        return columns[0], self._summed_loss(outputs, y)

    def full(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Summed loss and H (P, P)."""
        outputs, columns = self._pull_back(x, self._root(**kwargs), self._is_learned())
        rows = columns.flatten(0, 1)
        return self._summed_loss(outputs, y), rows.mT @ rows

    def diag(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Summed loss and the diagonal of H (P,)."""
        outputs, columns = self._pull_back(x, self._root(**kwargs), self._is_learned())
        return self._summed_loss(outputs, y), columns.square().sum((0, 1))

    def kron(self, x: Any, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, PathwayKron]:
        """Summed loss and this batch's share of the KFAC factors of N data, a Kronecker block a pathway.

        `kfac_approx` takes the place of the class's "expand" or "reduce".
        """
        kfac = kwargs.pop("kfac_approx", self.kfac)
        root, learned = self._root(**kwargs), self._is_learned()
        with frozen(self._cut_off), computed_once(self.model):
            net, batch = as_batch(self.model, x, self.dict_key_x)
            outputs, factors = batch_factors(net, self.params, batch, N, root, learned, kfac)
        return self._summed_loss(outputs, y), PathwayKron(
            [as_kfacs(p, blocks) for p, blocks in zip(self.params, factors, strict=True)]
        )

    def _pull_back(self, x: Any, probes: Probes, create_graph: bool) -> tuple[Tensor, Tensor]:
        with frozen(self._cut_off), computed_once(self.model):
            net, batch = as_batch(self.model, x, self.dict_key_x)
            outputs, columns = batch_jacobians(net, self.params, batch, probes, create_graph)
        return outputs, columns if self.subnetwork_indices is None else columns[..., self.subnetwork_indices]

    def _root(self, N: int | None = None, mc_samples: int | None = None) -> Probes:
        """From outputs to S (batch, C, columns), with `mc_samples` in the place of `num_samples`."""
        if not self.stochastic:
            if mc_samples not in (None, 1):
                raise ValueError(f"mc_samples={mc_samples} without stochastic=True: nothing is drawn")
            return self._loss.hessian_root
        draw = _drawn_classes if self.likelihood == "classification" else _drawn_noise
        return lambda outputs: draw(outputs, mc_samples or self.num_samples)

    def _is_learned(self) -> bool:
        """Whether the evidence is to be differentiable in anything that shapes a kernel."""
        if self.last_layer or self.stochastic or not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in [*structure(self.model), *shaping_precisions(self.model)])

    def _summed_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        self._loss.check(outputs, y)
        if isinstance(self._loss, Gaussian):
            return 0.5 * (y - outputs).square().sum()
        return -self._loss.log_prob(outputs, y)

    def _residuals(self, outputs: Tensor, y: Tensor) -> Tensor:
        """∂(-log p) / ∂f, (batch, C), at unit noise."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (found,) = torch.autograd.grad(-self._loss.log_prob(leaf, y), leaf)
        return found.flatten(1)


class ReducedPathwayGGN(PathwayGGN):
    """The same with KFAC-reduce for its Kronecker factors."""

    kfac = "reduce"


def _drawn_classes(outputs: Tensor, samples: int) -> Tensor:
    """(p - e_y) / √samples with y ~ p = softmax(f), (batch, C, samples)."""
    p = outputs.softmax(-1)
    drawn = torch.multinomial(p, samples, replacement=True)
    return (p.unsqueeze(-1) - one_hot(drawn, p.shape[-1]).mT) / samples**0.5


def _drawn_noise(outputs: Tensor, samples: int) -> Tensor:
    """(f - y) / √samples with y ~ N(f, I), (batch, C, samples)."""
    shape = (*outputs.flatten(1).shape, samples)
    return torch.randn(shape, dtype=outputs.dtype, device=outputs.device) / samples**0.5


def _identity(outputs: Tensor) -> Tensor:
    classes = outputs[0].numel()
    return torch.eye(classes, dtype=outputs.dtype, device=outputs.device).expand(len(outputs), classes, classes)
