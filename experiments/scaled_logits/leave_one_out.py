"""What the logits of a training datum would have been without that datum, to first order; and a scale of logits.

With A = Σ_n J_nᵀ W_n J_n + Λ at the MAP weights, V_n = J_n A⁻¹ J_nᵀ and W_n = diag(p_n) - p_n p_nᵀ, one Newton step on
the loss without datum n leads to

    f₋ₙ = f_n + J_n (A - J_nᵀ W_n J_n)⁻¹ J_nᵀ (p_n - y_n) = f_n + V_n (I - W_n V_n)⁻¹ (p_n - y_n)

and with W_n = S_n S_nᵀ, rows Ĵ_n = S_nᵀ J_n, B = I + Ĵ Λ⁻¹ Ĵᵀ, Q_n the diagonal block of B⁻¹ and S_n t_n = p_n - y_n

    S_nᵀ (f₋ₙ - f_n) = (Q_n⁻¹ - I) t_n

so that all data follow from one inverse, which is exact: the whole Gauss-Newton matrix, in function space.
"""

import math

import torch
from scipy.linalg import get_blas_funcs
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import bayesws as bws

AT_ONCE = 100  # data whose Jacobians are made together
GRID = [math.exp(0.01 * step) for step in range(-150, 151)]  # scales from 0.22 to 4.5


@torch.no_grad()
def whitened_rows(fit: bws.FitResult, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and S_nᵀ J_n Λ^(-1/2), (N, C - 1, P)."""
    weights = {name: p.detach() for name, p in fit.model.named_parameters() if name in fit.prior}

    def outputs(values: dict[str, Tensor], datum: Tensor) -> Tensor:
        return functional_call(fit.model, values, (datum.unsqueeze(0),)).squeeze(0)

    logits, rows = [], []
    for part in x.split(AT_ONCE):
        f = fit.model(part)
        jacobian = vmap(jacrev(outputs), (None, 0))(weights, part)
        whitened = [(-0.5 * fit.prior[name]).exp() * j.flatten(2) for name, j in jacobian.items()]
        logits.append(f.double())
        rows.append(root_of(f.double()).to(f).mT @ torch.cat(whitened, -1))
    return torch.cat(logits), torch.cat(rows)


def root_of(logits: Tensor) -> Tensor:
    """S = (diag(√p) - p √pᵀ) Q without its last column, which is zero, (N, C, C - 1): S Sᵀ = diag(p) - p pᵀ."""
    root = logits.softmax(-1).sqrt()
    whole = torch.diag_embed(root) - root.square().unsqueeze(-1) * root.unsqueeze(-2)
    return reflected(whole, root)[..., :-1]


def reflected(rows: Tensor, root: Tensor) -> Tensor:
    """rows (N, ..., C) times Q = I - 2 v vᵀ / vᵀv with v = √p + e_C, which takes √p to -e_C and back."""
    v = root + nn.functional.one_hot(torch.tensor(root.shape[1] - 1), root.shape[1])
    v = (v / v.norm(dim=-1, keepdim=True)).reshape(len(v), *[1] * (rows.ndim - 2), -1)
    return rows - 2 * (rows * v).sum(-1, keepdim=True) * v


def left_out(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """f₋ₙ (N, C), but for what all logits of a datum share, which softmax does not see.

    Args:
        logits: f (N, C), in float64.
        labels: (N,).
        rows: Ĵ Λ^(-1/2), (N, C - 1, P).
    """
    c = logits.shape[1]
    b = gram(rows.flatten(0, 1))
    b.diagonal().add_(1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(b))
    own = torch.stack([part[:, i * (c - 1) : (i + 1) * (c - 1)] for i, part in enumerate(inverse.split(c - 1))])  # Q_n
    root = logits.softmax(-1).sqrt()
    residual = reflected(root - nn.functional.one_hot(labels, c) / root, root)[:, :-1]  # t: S t = p - y
    moved = torch.linalg.solve(own, residual.unsqueeze(-1)).squeeze(-1) - residual
    return logits + reflected(nn.functional.pad(moved, (0, 1)), root) / root  # Qᵀ Sᵀ d = √p (d - pᵀ d)


def gram(rows: Tensor) -> Tensor:
    """rows rowsᵀ in float64, of which what is made is the lower half."""
    syrk = get_blas_funcs("syrk", (rows.numpy(),))
    half = torch.from_numpy(syrk(1.0, rows.numpy().T, trans=1, lower=1)).double()
    return half.tril() + half.tril(-1).mT


def losses(logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    """-log softmax(s f)_y of every datum (N,), nats."""
    return nn.functional.cross_entropy(scale * logits, labels, reduction="none")


def scale_for(logits: Tensor, labels: Tensor, standard_errors: float) -> tuple[float, float]:
    """The scale with the least mean loss; and the one nearest to 1 whose loss is above that by at most so many paired
    standard errors."""
    best = min(GRID, key=lambda s: float(losses(logits, labels, s).mean()))
    least = losses(logits, labels, best)
    for scale in sorted((s for s in GRID if (s - 1) * (best - 1) >= 0), key=lambda s: abs(math.log(s))):
        more = losses(logits, labels, scale) - least
        if float(more.mean()) <= standard_errors * float(more.std()) / len(more) ** 0.5:
            return best, scale
    return best, best


def with_and_without(fit: bws.FitResult, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """f_n and f₋ₙ of the training data of a fit."""
    logits, rows = whitened_rows(fit, x)
    return logits, left_out(logits, y, rows)
