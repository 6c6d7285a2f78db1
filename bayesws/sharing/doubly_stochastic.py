"""Soft permutations: doubly stochastic matrices from unconstrained logits, and stacks of them.

A stack is a tensor of shape (G, d, d) whose first matrix is the identity (the anchor) and whose every matrix has
rows and columns that sum to one. Source: "Learning Symmetries via Weight-Sharing with Doubly Stochastic Tensors",
arXiv 2412.04594, sections 3 and 4.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-9  # largest |row sum - 1| accepted; the projection works in float64 whatever the logits' type
MAX_ITERATIONS = 500
FIRST_SWEEPS = 10  # alternations before the first Newton step
NEWTON_STEP = 2.0  # largest change of a log potential in one step


@dataclass(frozen=True)
class DoublyStochastic:
    """A batch of doubly stochastic matrices and how well the projection onto them converged.

    Attributes:
        matrix: (..., d, d), rows and columns sum to one up to `residual`.
        residual: largest |row sum - 1| over the batch (columns are exact).
        iterations: alternate normalisations done.
        converged: whether `residual` reached the tolerance that was asked for.
    """

    matrix: Tensor
    residual: float
    iterations: int
    converged: bool


def sinkhorn(
    logits: Float[Tensor, "*batch d d"], tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS
) -> DoublyStochastic:
    """Project exp(logits) onto the doubly stochastic matrices by alternate normalisation in the log domain.

    R = exp(logits + u 1ᵀ + 1 vᵀ) with potentials u, v such that R 1 = 1 and Rᵀ 1 = 1. The gradient is the one of the
    converged R (implicit function theorem), so its cost does not grow with the number of iterations.

    Args:
        logits: (..., d, d), any floating type; the projection itself runs in float64.
        tolerance: stop once the largest |row sum - 1| is below it.
        max_iterations: stop there at the latest; `converged` then says False and `residual` how far off it is.

    Raises:
        ValueError: logits that are not square, not floating or not finite.

    >>> sinkhorn(torch.tensor([[0.0, 100.0], [100.0, 0.0]])).matrix.round()
    tensor([[0., 1.],
            [1., 0.]])
    """
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2] or not logits.is_floating_point():
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and type {logits.dtype}: expected floating (..., d, d)"
        )
    if not torch.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinite entries: expected finite ones; lower the structure's step")
    log_r, residual, iterations = _normalise(logits.detach().double(), tolerance, max_iterations)
    matrix = _ImplicitSinkhorn.apply(logits.double(), log_r.exp()).to(logits.dtype)
    return DoublyStochastic(matrix, residual, iterations, residual <= tolerance)


def _normalise(log_r: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, float, int]:
    """Sinkhorn's alternate normalisation with a Newton step on its potentials after each sweep.

    Alternation alone crawls where the logits are hard and nearly tied (thousands of sweeps). The potentials (u, v)
    minimise the convex Σ exp(logits + u 1ᵀ + 1 vᵀ) - Σ u - Σ v, with gradient the sums' misfit and Hessian
    [[diag(R 1), R], [Rᵀ, diag(Rᵀ 1)]]; one potential is redundant and held. Steps are at most NEWTON_STEP nats.
    """
    residual, iteration = float("inf"), 0
    while iteration < max_iterations:
        for _ in range(min(FIRST_SWEEPS, max_iterations) if iteration == 0 else 1):
            iteration += 1
            log_r = log_r - log_r.logsumexp(-1, keepdim=True)
            log_r = log_r - log_r.logsumexp(-2, keepdim=True)
        r = log_r.exp()
        rows, columns = r.sum(-1), r.sum(-2)
        residual = (rows - 1).abs().max().item() if r.numel() else 0.0
        if residual <= tolerance or iteration >= max_iterations:
            break
        left = torch.cat([torch.diag_embed(rows), r.mT], -2)
        right = torch.cat([r, torch.diag_embed(columns)], -2)
        hessian = torch.cat([left, right], -1)[..., :-1, :-1]
        misfit = torch.cat([1 - rows, 1 - columns], -1)[..., :-1, None]
        ridge = 1e-13 * torch.eye(hessian.shape[-1], dtype=r.dtype, device=r.device)
        step = torch.nn.functional.pad(torch.linalg.solve(hessian + ridge, misfit).squeeze(-1), (0, 1))
        step = step * (NEWTON_STEP / step.abs().amax(-1, keepdim=True).clamp(min=NEWTON_STEP))
        u, v = step.split(r.shape[-1], dim=-1)
        log_r = log_r + u[..., :, None] + v[..., None, :]
    return log_r, residual, iteration


class _ImplicitSinkhorn(torch.autograd.Function):
    """The converged R as a function of the logits.

    From dR = R ∘ (dL + du 1ᵀ + 1 dvᵀ), dR 1 = 0 and dRᵀ 1 = 0, the adjoint of an incoming gradient Γ is
    R ∘ (Γ - a 1ᵀ - 1 bᵀ), where [[I, R], [Rᵀ, I]] (a, b) = ((R ∘ Γ) 1, (R ∘ Γ)ᵀ 1). The matrix is singular along
    (1, -1), which leaves the result alone: hence the pseudo-inverse.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, r: Tensor) -> Tensor:
        return r.clone()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (r,) = ctx.saved_tensors
        d = r.shape[-1]
        eye = torch.eye(d, dtype=r.dtype, device=r.device).expand(r.shape)
        system = torch.cat([torch.cat([eye, r], -1), torch.cat([r.mT, eye], -1)], -2)
        weighted = r * grad
        sums = torch.cat([weighted.sum(-1), weighted.sum(-2)], -1).unsqueeze(-1)
        a, b = (torch.linalg.pinv(system, rtol=1e-12, hermitian=True) @ sums).split(d, dim=-2)
        return weighted - r * (a + b.mT), None


def dense_stack(logits: Float[Tensor, "rest d d"]) -> DoublyStochastic:
    """One free soft permutation for every element but the first: R = (I, Sinkhorn(logits_1), ...).

    Args:
        logits: (G - 1, d, d).

    Returns: matrices (G, d, d); G (d² - ...) free numbers, the published parameterisation (arXiv 2412.04594, eq. 8).
    """
    soft = sinkhorn(logits)
    return DoublyStochastic(_anchored(soft.matrix), soft.residual, soft.iterations, soft.converged)


def product_stack(
    axis_logits: Float[Tensor, "rest g g"], support_logits: Float[Tensor, "rest s s"]
) -> DoublyStochastic:
    """R_g = S_g ⊗ P_g: a soft permutation of the group axis times one of the kernel's support.

    Products of doubly stochastic matrices are doubly stochastic; (G - 1)(g² + s²) numbers instead of (G - 1)(g s)².

    Args:
        axis_logits: (G - 1, g, g), g = 1 where the input has no group axis.
        support_logits: (G - 1, s, s), s = number of positions in the kernel.

    Returns: matrices (G, g s, g s).
    """
    axis, support = sinkhorn(axis_logits), sinkhorn(support_logits)
    product = torch.einsum("rab,rmn->rambn", axis.matrix, support.matrix)
    size = axis_logits.shape[-1] * support_logits.shape[-1]
    return DoublyStochastic(
        _anchored(product.reshape(-1, size, size)),
        max(axis.residual, support.residual),
        max(axis.iterations, support.iterations),
        axis.converged and support.converged,
    )


def power_stack(logits: Float[Tensor, "d d"], group_size: int) -> DoublyStochastic:
    """R_g = P^(g-1), P = Sinkhorn(logits): one generator; closed under composition where P^G = I.

    Args:
        logits: (d, d), those of the generator.
        group_size: G, the number of elements.

    Returns: matrices (G, d, d).
    """
    generator = sinkhorn(logits)
    matrices = [torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)]
    for _ in range(group_size - 1):
        matrices.append(matrices[-1] @ generator.matrix)
    return DoublyStochastic(torch.stack(matrices), generator.residual, generator.iterations, generator.converged)


def _anchored(rest: Tensor) -> Tensor:
    eye = torch.eye(rest.shape[-1], dtype=rest.dtype, device=rest.device)
    return torch.cat([eye.unsqueeze(0), rest])
