"""Soft permutations: doubly stochastic matrices from unconstrained logits, and stacks of them.

A stack is a tensor of shape (G, d, d) whose first matrix is the identity (the anchor) and whose every matrix has
rows and columns that sum to one. Source: "Learning Symmetries via Weight-Sharing with Doubly Stochastic Tensors",
arXiv 2412.04594, sections 3 and 4.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-9  # largest |row sum - 1| accepted; the projection works in float64 whatever the logits' type
MAX_ITERATIONS = 500
FIRST_SWEEPS = 10  # alternations before the first Newton step
NEWTON_STEP = 2.0  # largest change of a log potential in one step
UNREAD_STEPS = 10  # Newton steps on a device that is not to be waited for: no look at the residual in between
LARGEST_POTENTIAL = 100.0  # in one run of plain alternations: far from where float64 exponentials under- or overflow
RIDGE = 1e-13  # below it a mode of I - R Rᵀ counts as the rounding error of a permutation
CONSTRAINTS = ("doubly", "rows", "none")


@dataclass(frozen=True)
class DoublyStochastic:
    """A batch of doubly stochastic matrices and how well the projection onto them converged.

    Attributes:
        matrix: (..., d, d), rows and columns sum to one up to `residual`.
        misfit: largest |row sum - 1| over the batch (columns are exact), a scalar tensor: nothing waits for it.
        iterations: alternate normalisations done.
        tolerance: the residual that was asked for.
        constraint: what was asked for, see `constrained`. Only "doubly" is a projection; for the others `misfit` is 0,
            what was asked for holds by construction, and the matrices are not doubly stochastic.
    """

    matrix: Tensor
    misfit: Tensor
    iterations: int
    tolerance: float = TOLERANCE
    constraint: str = "doubly"

    @property
    def residual(self) -> float:
        """Largest |row sum - 1| as a number; on an accelerator, reading it waits for the projection."""
        return self.misfit.item()

    @property
    def converged(self) -> bool:
        """Whether `residual` reached the tolerance that was asked for; not so for logits that are not finite."""
        return self.residual <= self.tolerance

    def detach(self) -> "DoublyStochastic":
        """The same matrices without their autograd graph."""
        return replace(self, matrix=self.matrix.detach())


def sinkhorn(
    logits: Float[Tensor, "*batch d d"], tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS
) -> DoublyStochastic:
    """Project exp(logits) onto the doubly stochastic matrices by alternate normalisation and Newton steps.

    R = exp(logits + u 1ᵀ + 1 vᵀ) with potentials u, v such that R 1 = 1 and Rᵀ 1 = 1. The gradient is the one of the
    converged R (implicit function theorem), so its cost does not grow with the number of iterations.

    On the CPU it stops as soon as the residual allows. On other devices nothing is read back: it takes UNREAD_STEPS
    Newton steps whether needed or not (a matrix that has converged stays as it is), and logits that are not finite
    raise no error but give a residual of NaN.

    Args:
        logits: (..., d, d), any floating type; the projection itself runs in float64.
        tolerance: stop once the largest |row sum - 1| is below it.
        max_iterations: stop there at the latest; `converged` then says False and `residual` how far off it is.

    Raises:
        ValueError: logits that are not square, not floating or (on the CPU) not finite.

    >>> sinkhorn(torch.tensor([[0.0, 100.0], [100.0, 0.0]])).matrix.round()
    tensor([[0., 1.],
            [1., 0.]])
    """
    _check(logits)
    may_wait = logits.device.type == "cpu"
    r, misfit, iterations = _normalise(logits.detach().double(), tolerance, max_iterations, may_wait)
    matrix = _ImplicitSinkhorn.apply(logits.double(), r).to(logits.dtype)
    return DoublyStochastic(matrix, misfit, iterations, tolerance)


def _check(logits: Tensor) -> None:
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2] or not logits.is_floating_point():
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and type {logits.dtype}: expected floating (..., d, d)"
        )
    if logits.device.type == "cpu" and not torch.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinite entries: expected finite ones; lower the structure's step")


def _normalise(log_r: Tensor, tolerance: float, max_iterations: int, may_wait: bool) -> tuple[Tensor, Tensor, int]:
    """R, its largest |row sum - 1| and the alternate normalisations done, with a Newton step between runs of them.

    Alternation alone crawls where the logits are hard and nearly tied (thousands of sweeps). The potentials (u, v)
    minimise the convex Σ exp(logits + u 1ᵀ + 1 vᵀ) - Σ u - Σ v, with gradient the sums' misfit and Hessian
    [[diag(R 1), R], [Rᵀ, I]] (columns are exact). Steps are at most NEWTON_STEP nats.
    """
    if not may_wait:
        max_iterations = min(max_iterations, FIRST_SWEEPS + UNREAD_STEPS)
    iterations = min(FIRST_SWEEPS, max_iterations)
    log_r, r = _alternate(log_r, iterations)
    while True:
        misfit = 1 - r.sum(-1, keepdim=True)
        residual = misfit.abs().amax() if misfit.numel() else misfit.new_zeros(())
        if iterations >= max_iterations or (may_wait and not residual > tolerance):
            return r, residual, iterations
        u = _solve(misfit, r)
        v = -u.mT @ r
        largest = torch.maximum(u.abs().amax(-2, keepdim=True), v.abs().amax(-1, keepdim=True))
        moved = log_r + NEWTON_STEP / largest.clamp(min=NEWTON_STEP) * (u + v)
        is_open = misfit.abs().amax(-2, keepdim=True) > tolerance
        log_r, r = (torch.where(is_open, new, old) for new, old in zip(_alternate(moved, 1), (log_r, r), strict=True))
        iterations += 1


def _alternate(log_r: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Normalise rows, then columns, `sweeps` times; log R and R.

    The first sweep is done on logarithms, which any logits survive; the others scale R = diag(e^u) K diag(e^v). Scales
    are bounded, so what underflowed in K stays negligible in R, and what a bound cut off the next run makes good.
    """
    log_r = log_r.log_softmax(-1).log_softmax(-2)
    kernel = log_r.exp()
    if sweeps == 1:
        return log_r, kernel
    transposed = kernel.mT.contiguous()
    bounds = math.exp(-LARGEST_POTENTIAL), math.exp(LARGEST_POTENTIAL)
    column = torch.ones_like(kernel[..., :1, :])
    for _ in range(sweeps - 1):
        row = (column @ transposed).clamp(*bounds).reciprocal()
        column = (row @ kernel).clamp(*bounds).reciprocal()
    return log_r + row.log().mT + column.log(), row.mT * kernel * column


def _solve(rows: Tensor, r: Tensor) -> Tensor:
    """u of (diag(R 1) - R Rᵀ) u = rows, where rows sum to zero.

    The matrix is the Laplacian of the graph with weights R Rᵀ. Built as one, from the weights between different rows,
    it is positive semi-definite to rounding error however hard R is. It is singular along 1, which is filled in.
    """
    level = 1 / r.shape[-1]
    weights = torch.diagonal_scatter(r @ r.mT, torch.zeros_like(rows.squeeze(-1)), 0, -2, -1)
    laplacian = torch.diagonal_scatter(level - weights, weights.sum(-1) + (level + RIDGE), 0, -2, -1)
    return torch.cholesky_solve(rows, torch.linalg.cholesky_ex(laplacian).L)


class _ImplicitSinkhorn(torch.autograd.Function):
    """The converged R as a function of the logits.

    From dR = R ∘ (dL + du 1ᵀ + 1 dvᵀ), dR 1 = 0 and dRᵀ 1 = 0, the adjoint of an incoming gradient Γ is
    R ∘ (Γ - a 1ᵀ - 1 bᵀ), where [[I, R], [Rᵀ, I]] (a, b) = ((R ∘ Γ) 1, (R ∘ Γ)ᵀ 1). Eliminating b leaves the Schur
    complement I - R Rᵀ of size d. For a nearly hard R that one is nearly singular in many directions; what rounding
    puts along these cancels in a_i + b_π(i) to the precision of Γ.
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
        weighted = r * grad
        columns = weighted.sum(-2, keepdim=True)
        a = _solve((weighted - r * columns).sum(-1, keepdim=True), r)
        return weighted - r * (a + columns - a.mT @ r), None


def constrained(logits: Float[Tensor, "*batch d d"], constraint: str = "doubly") -> DoublyStochastic:
    """The matrices that logits stand for; "rows" and "none" are ablations of the projection.

    "doubly": Sinkhorn(logits), rows and columns sum to one. "rows": softmax over every row, so that only rows do.
    "none": the logits are the matrix's entries themselves.

    Raises:
        ValueError: an unknown constraint; logits as for `sinkhorn`.

    >>> constrained(torch.zeros(2, 2), "rows").matrix
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint={constraint!r}: expected one of {', '.join(CONSTRAINTS)}")
    if constraint == "doubly":
        return sinkhorn(logits)
    _check(logits)
    matrix = logits.softmax(-1) if constraint == "rows" else logits
    return DoublyStochastic(matrix, matrix.new_zeros(()), 0, constraint=constraint)


def dense_stack(logits: Float[Tensor, "rest d d"], constraint: str = "doubly") -> DoublyStochastic:
    """One free soft permutation for every element but the first: R = (I, Sinkhorn(logits_1), ...).

    Args:
        logits: (G - 1, d, d).
        constraint: what takes the place of Sinkhorn, see `constrained`.

    Returns: matrices (G, d, d); G (d² - ...) free numbers, the published parameterisation (arXiv 2412.04594, eq. 8).
    """
    soft = constrained(logits, constraint)
    return replace(soft, matrix=_anchored(soft.matrix))


def product_stack(
    axis_logits: Float[Tensor, "rest g g"], support_logits: Float[Tensor, "rest s s"], constraint: str = "doubly"
) -> DoublyStochastic:
    """R_g = S_g ⊗ P_g: a soft permutation of the group axis times one of the kernel's support.

    Products of doubly stochastic matrices are doubly stochastic; (G - 1)(g² + s²) numbers instead of (G - 1)(g s)².

    Args:
        axis_logits: (G - 1, g, g), g = 1 where the input has no group axis.
        support_logits: (G - 1, s, s), s = number of positions in the kernel.
        constraint: of both, see `constrained`.

    Returns: matrices (G, g s, g s).
    """
    axis, support = constrained(axis_logits, constraint), constrained(support_logits, constraint)
    product = torch.einsum("rab,rmn->rambn", axis.matrix, support.matrix)
    size = axis_logits.shape[-1] * support_logits.shape[-1]
    return DoublyStochastic(
        _anchored(product.reshape(-1, size, size)),
        torch.maximum(axis.misfit, support.misfit),
        max(axis.iterations, support.iterations),
        axis.tolerance,
        constraint,
    )


def power_stack(logits: Float[Tensor, "d d"], group_size: int, constraint: str = "doubly") -> DoublyStochastic:
    """R_g = P^(g-1), P = Sinkhorn(logits): one generator; closed under composition where P^G = I.

    Args:
        logits: (d, d), those of the generator.
        group_size: G, the number of elements.
        constraint: of the generator, see `constrained`; powers keep what it asks for.

    Returns: matrices (G, d, d).
    """
    generator = constrained(logits, constraint)
    matrices = [torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)]
    for _ in range(group_size - 1):
        matrices.append(matrices[-1] @ generator.matrix)
    return replace(generator, matrix=torch.stack(matrices))


def _anchored(rest: Tensor) -> Tensor:
    eye = torch.eye(rest.shape[-1], dtype=rest.dtype, device=rest.device)
    return torch.cat([eye.unsqueeze(0), rest])
