"""Logits without a datum: what a network would have said of a training datum that it had not seen, and their scale.

With A = Σ_n J_nᵀ W_n J_n + Λ at the MAP weights, V_n = J_n A⁻¹ J_nᵀ and W_n = diag(p_n) - p_n p_nᵀ, a Newton step on
the loss without datum n leads from the logits f_n to

    f₋ₙ = f_n + J_n (A - J_nᵀ W_n J_n)⁻¹ J_nᵀ (p_n - y_n) = f_n + V_n (I - W_n V_n)⁻¹ (p_n - y_n)

with V_n of the whole Gauss-Newton matrix. With W_n = S_n S_nᵀ, rows Ĵ_n = S_nᵀ J_n and S_n t_n = p_n - y_n

    S_nᵀ (f₋ₙ - f_n) = (Q_n⁻¹ - I) t_n        Q_n = I - Ĵ_n A⁻¹ Ĵ_nᵀ = [(I + Ĵ Λ⁻¹ Ĵᵀ)⁻¹]_nn

so that all follow from one inverse, in the smaller of two spaces: of R = N (C - 1) rows, or of P parameters. The logits
themselves follow up to a constant a datum, which softmax does not see. References: Pregibon (1981); arXiv 1801.10243.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.by_batch import batch_jacobians
from bayesws.evidence.hessian import cholesky
from bayesws.evidence.likelihood import Categorical
from bayesws.evidence.memory import in_bytes, memory_at_hand
from bayesws.evidence.networks import outputs_of
from bayesws.evidence.products import gram_of_matrix
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import evaluating, named_pathways

SCALES = [math.exp(0.01 * step) for step in range(-150, 151)]  # from 0.22 to 4.5
STANDARD_ERRORS = 2.0  # by which the loss of a scale may exceed the least one
COPIES = 3  # of the matrix that is inverted: itself, its factor, its inverse
TINY = 1e-150  # the square root of the least probability


@dataclass(frozen=True)
class LeftOut:
    """Logits of the training data.

    Attributes:
        with_it: f_n (N, C), float64.
        without_it: f₋ₙ (N, C), up to a constant a datum.
        targets: (N,).
    """

    with_it: Tensor
    without_it: Tensor
    targets: Tensor

    def scale(self) -> float:
        """The scale s nearest to 1 whose loss -log softmax(s f₋ₙ) at y_n, averaged, is above the least one by at most
        two standard errors of the paired difference.
        """
        best = min(SCALES, key=lambda scale: float(self._losses(scale).mean()))
        least = self._losses(best)
        between = [scale for scale in SCALES if (scale - 1) * (best - 1) >= 0]
        return next(s for s in sorted(between, key=lambda s: abs(math.log(s))) if self._will_do(s, least))

    def _losses(self, scale: float) -> Tensor:
        return nn.functional.cross_entropy(scale * self.without_it, self.targets.long(), reduction="none")

    def _will_do(self, scale: float, least: Tensor) -> bool:
        more = self._losses(scale) - least
        return float(more.mean()) <= STANDARD_ERRORS * float(more.std(correction=0)) / len(more) ** 0.5


@torch.no_grad()
def left_out(net: nn.Module, data: Batches, log_precisions: Mapping[str, Tensor]) -> LeftOut:
    """f₋ₙ of the training data of a classification.

    It takes R × P numbers in the weights' type and three times R² in float64, or, where P is less than R, three times
    P²; and about min(R, P)² (R + P) multiplications.

    Args:
        net: the network at its MAP weights.
        data: that it was trained on, no DataLoader.
        log_precisions: log δ by pathway.

    Raises:
        ValueError: data that does not fit, more memory than is at hand.
        FloatingPointError: a matrix that is not positive definite by the digits of the weights' type.
    """
    data.tensors()  # raises for a loader: three walks are to meet the data in one order
    with evaluating(net), computed_once(net):
        logits, targets = _logits(net, data)
        rows, count = _Rows(net, data, log_precisions), len(logits) * (logits.shape[1] - 1)
        own = _own_by_rows(rows, count) if count <= rows.size else _own_by_weights(rows)
    return LeftOut(logits, logits + _moved(logits, targets, own), targets)


class _Rows:
    """Ĵ_n Λ^-½ of the data, batch by batch, (batch, C - 1, P), with S by `root_of`.

    Attributes:
        size: P.
        deviations: of the prior, Λ^-½ (P,).
    """

    def __init__(self, net: nn.Module, data: Batches, log_precisions: Mapping[str, Tensor]) -> None:
        self._net, self._data = net, data
        pathways = {id(p.parameter): (name, p.parameter) for name, p in named_pathways(net)}
        self._parameters = [parameter for _, parameter in pathways.values()]
        deviations = [(-0.5 * log_precisions[name]).exp().expand(p.numel()) for name, p in pathways.values()]
        self.deviations = torch.cat([d.to(p) for d, p in zip(deviations, self._parameters, strict=True)])
        self.size = len(self.deviations)

    def __iter__(self) -> Iterator[Tensor]:
        for x, _ in self._data:
            for part in x.split(max(1, AT_ONCE // self.size)):
                columns = batch_jacobians(self._net, self._parameters, part, root_of, False)[1]
                yield columns.movedim(0, 1) * self.deviations


AT_ONCE = 2**22  # numbers of a column's rows that are made together


def root_of(logits: Tensor) -> Tensor:
    """S (batch, C, C - 1) with S Sᵀ = diag(p) - p pᵀ, as `Categorical.hessian_root` with the likeliest class as last.

    Column j is then in proportion to √p_j for every class but that one, and so are the errors of all that follows.
    """
    order = _order(logits)
    root = Categorical().hessian_root(logits.gather(1, order))
    return root.gather(1, order.unsqueeze(-1).expand_as(root))


def _order(logits: Tensor) -> Tensor:
    """The classes of every datum with the likeliest and the last one exchanged, (batch, C): its own inverse."""
    order = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits), 1)
    top = logits.argmax(1, keepdim=True)
    order[:, -1:] = top
    return order.scatter(1, top, logits.shape[1] - 1)


def _logits(net: nn.Module, data: Batches) -> tuple[Tensor, Tensor]:
    """f (N, C) in float64, and the labels."""
    logits, targets = [], []
    for x, y in data:
        outputs = outputs_of(net, x)
        Categorical().check(outputs, y)
        logits.append(outputs.double())
        targets.append(y.long())
    return torch.cat(logits), torch.cat(targets)


def _own_by_rows(rows: _Rows, count: int) -> Tensor:
    """Q_n (N, C - 1, C - 1), the diagonal blocks of (I + Ĵ Λ⁻¹ Ĵᵀ)⁻¹."""
    _refuse_what_does_not_fit(rows, count, rows.deviations.element_size() * count * rows.size)
    parts = list(rows)
    columns = parts[0].shape[1]
    b = gram_of_matrix([part.flatten(0, 1) for part in parts])
    del parts
    b.diagonal().add_(1)
    inverse = torch.cholesky_inverse(cholesky(b, ["all pathways"]))
    return torch.stack([block[:, columns * i : columns * (i + 1)] for i, block in enumerate(inverse.split(columns))])


def _own_by_weights(rows: _Rows) -> Tensor:
    """Q_n (N, C - 1, C - 1), as I - Ĵ_n A⁻¹ Ĵ_nᵀ."""
    _refuse_what_does_not_fit(rows, rows.size, 0)
    a = torch.eye(rows.size, dtype=torch.float64, device=rows.deviations.device)
    for part in rows:
        flat = part.flatten(0, 1).double()
        a.addmm_(flat.mT, flat)
    factor, found = cholesky(a, ["all pathways"]), []
    for part in rows:
        half = torch.linalg.solve_triangular(factor, part.flatten(0, 1).double().mT, upper=False)
        half = half.unflatten(1, part.shape[:2]).movedim(0, -1)  # (batch, C - 1, P)
        found.append(torch.eye(part.shape[1]).to(half) - half @ half.mT)
    return torch.cat(found)


def _refuse_what_does_not_fit(rows: _Rows, side: int, beside: int) -> None:
    needed, at_hand = 8 * COPIES * side**2 + beside, memory_at_hand(rows.deviations.device)
    if needed > at_hand:
        raise ValueError(
            f"a scale from left-out data takes {in_bytes(needed)}, for a matrix of {side} rows, and "
            f"{in_bytes(at_hand)} are at hand: use kind='map'"
        )


def _moved(logits: Tensor, targets: Tensor, own: Tensor) -> Tensor:
    """f₋ₙ - f_n (N, C), up to a constant a datum.

    With the likeliest class as last, S = diag(√p) (I - √p √pᵀ) Q without its last column, where Q reflects √p to -e_C:
    t = Qᵀ a for a = √p - e_y / √p_y, and √p (d - pᵀd) = Q (Sᵀ d, 0).
    """
    order = _order(logits)
    root = (0.5 * logits.gather(1, order).log_softmax(-1)).exp().clamp(min=TINY)
    a = root - (order == targets.unsqueeze(1)) / root
    last = 1 + root[:, -1:]
    t = (a - root * a[:, -1:] / last)[:, :-1]
    z = torch.linalg.solve(own, t.unsqueeze(-1)).squeeze(-1) - t
    along = (root[:, :-1] * z).sum(1, keepdim=True)
    moved = torch.cat([z / root[:, :-1] - along / last, -along / root[:, -1:]], 1)
    return moved.gather(1, order)
