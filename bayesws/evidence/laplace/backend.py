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

from bayesws.evidence.by_batch import Probes, batch_factors, batch_jacobians
from bayesws.evidence.laplace.kron import PathwayKron, as_kfacs
from bayesws.evidence.likelihood import Categorical, Gaussian, Likelihood
from bayesws.layers.contract import named_pathways, shaping_precisions, structure


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
        loss: a likelihood beside laplace-torch's two, which then goes by "regression" there, at unit noise.

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
        loss: Likelihood | None = None,
    ) -> None:
        if last_layer:
            raise ValueError("subset_of_weights='last_layer' with PathwayGGN: expected 'all' or 'subnetwork'")
        super().__init__(model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y)
        weights = {id(pathway.parameter) for _, pathway in named_pathways(model)}
        self.params_dict = {name: p for name, p in model.named_parameters() if id(p) in weights}
        self.params = list(self.params_dict.values())
        known = Categorical() if likelihood == "classification" else Gaussian(learn=False)
        self._loss: Likelihood = known if loss is None else loss

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

    def kron(self, x: Any, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, PathwayKron]:
        """Summed loss and this batch's share of the KFAC-expand factors of N data, a Kronecker block a pathway."""
        root, learned = self._loss.hessian_root, _is_learned(self.model)
        outputs, factors = batch_factors(self.model, self.params, x, N, root, learned, self.kfac)
        return self._summed_loss(outputs, y), PathwayKron(
            [as_kfacs(p, blocks) for p, blocks in zip(self.params, factors, strict=True)]
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
        """∂(-log p) / ∂f, (batch, C), at unit noise."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (found,) = torch.autograd.grad(-self._loss.log_prob(leaf, y), leaf)
        return found.flatten(1)


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
