"""How far is a Laplace evidence from the truth? Errors against a gold standard, and whether structures rank alike."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import kendalltau
from torch import Tensor, nn

from bayesws.analysis.annealing import AnnealedEvidence
from bayesws.analysis.whitened import Whitened
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Gaussian, Likelihood
from bayesws.evidence.objective import log_evidence
from bayesws.io.arguments import real, shown
from bayesws.io.tables import as_text

CURVATURES: dict[str, Curvature] = {
    "full": Curvature("full"),
    "layer": Curvature("layer"),
    "pathway": Curvature("pathway"),
    "kron": Curvature("kron"),
    "kron, reduce": Curvature("kron", kfac="reduce"),
    "diag": Curvature("diag"),
    "full, 1 sample": Curvature("full", samples=1),
    "kron, 1 sample": Curvature("kron", samples=1),
}
AT_THE_MAP = 1e-2  # nats that a Newton step may still gain
TOLD_APART = 2.0  # standard errors of a difference


@dataclass(frozen=True)
class Calibration:
    """The log evidence of one network on one data set, by every curvature and by a gold standard.

    Attributes:
        gold: log p(D), nats; `standard_error` of it, 0 for a closed form.
        standard_error: nats.
        log_copies: log of the number of weight vectors that the declared symmetries make of one mode, nats. The gold
            standard counts them all, a Laplace approximation one.
        examples: number of data.
        log_evidence: the Laplace approximation by the curvature's name, nats.
        notes: what is not to be trusted, one line each.
    """

    gold: float
    standard_error: float
    log_copies: float
    examples: int
    log_evidence: dict[str, float]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table, and the notes."""
        return "\n".join([as_text(self.table()), *(f"note: {note}" for note in self.notes)])

    def error(self, curvature: str, copies: bool = False) -> float:
        """(Laplace - gold) / N, nats per datum; with `copies`, log_copies is added to Laplace."""
        found = self.log_evidence[curvature] + (self.log_copies if copies else 0.0)
        return (found - self.gold) / self.examples

    def table(self) -> Table:
        """A row a curvature: nats, and the error in nats per datum without and with the symmetry copies."""
        scale = f"gold {self.gold:.2f} ± {self.standard_error:.2f} nats, {self.examples} data"
        table = Table(
            title=f"Errors of the log evidence; {scale}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1)
        )
        table.add_column("curvature")
        for name in ("log evidence", "error per datum", f"with {self.log_copies:.2f} for copies"):
            table.add_column(name, justify="right")
        for name, value in self.log_evidence.items():
            table.add_row(name, f"{value:.2f}", f"{self.error(name):+.4f}", f"{self.error(name, True):+.4f}")
        return table

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def calibrate(
    net: nn.Module,
    data: Any,
    likelihood: str | Likelihood,
    gold: AnnealedEvidence | float,
    curvatures: Mapping[str, str | Curvature] | None = None,
    prior: Mapping[str, Tensor | float] | float | None = None,
    log_copies: float = 0.0,
) -> Calibration:
    """Hold the Laplace evidence of a network at its MAP weights against a gold standard.

    Args:
        net: at the MAP; a note says where it is not.
        data, likelihood, prior: as for `log_evidence`, and as the gold standard had them.
        gold: of `annealed_evidence`, or a number in nats, such as that of `linear_gaussian_evidence`.
        curvatures: by the names that the result shall have; those of `CURVATURES` if None.
        log_copies: log of the number of copies that symmetries make of a mode, such as log(H! 2^H) for H hidden units
            behind an odd activation.

    Raises:
        ValueError: what `log_evidence` would not take, either; negative log_copies.
    """
    real("log_copies", log_copies, "the log of a number of copies, at least log 1 = 0", least=0)
    if not isinstance(gold, AnnealedEvidence):
        real("gold", gold, "an AnnealedEvidence, or a log evidence in nats")
    if not isinstance(curvatures, Mapping | None) or curvatures == {}:
        raise ValueError(f"curvatures={shown(curvatures)}: expected a mapping of names to curvatures, or None")
    target = Whitened(net, data, likelihood, prior)
    chosen = CURVATURES if curvatures is None else curvatures
    with torch.no_grad():
        found = {
            name: log_evidence(net, data, target.likelihood, kind, prior, target.examples)
            for name, kind in chosen.items()
        }
    _, gradient = target.with_gradient(target.present[None])
    # the prior's curvature is I: half the squared slope is the most that a Newton step gains
    slope = float((gradient[0] - target.present).square().sum()) / 2
    notes = list(gold.notes) if isinstance(gold, AnnealedEvidence) else []
    if slope > AT_THE_MAP:
        notes.append(f"not at the MAP: a step could gain up to {slope:.2g} nats; train on, with the prior")
    error = gold.standard_error if isinstance(gold, AnnealedEvidence) else 0.0
    totals = {name: float(evidence) for name, evidence in found.items()}
    return Calibration(float(gold), error, log_copies, target.examples, totals, tuple(notes))


def linear_gaussian_evidence(
    net: nn.Module, data: Any, likelihood: str | Gaussian = "regression", prior: Mapping[str, Any] | float | None = None
) -> float:
    """log N(y; f₀, Φ Λ⁻¹ Φᵀ + σ² I) of a network that is linear in its weights, f = f₀ + Φ θ: exact, nats.

    By the matrix determinant lemma, with Φ whitened, A = I + ΦᵀΦ / σ², r = y - f₀ and b = Φᵀ r / σ²,

        -½ (rᵀr / σ² - bᵀ A⁻¹ b) - ½ log det A - n log σ - n/2 log 2π

    Args:
        net, data, likelihood, prior: as for `log_evidence`.

    Raises:
        ValueError: a network that is not linear in its weights, another likelihood, what `log_evidence` would not take.

    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> found = linear_gaussian_evidence(net, (torch.ones(1, 1), torch.ones(1, 1)))  # N(1; 0, 2)
    >>> abs(found - (-0.25 - 0.5 * math.log(4 * math.pi))) < 1e-12
    True
    """
    target = Whitened(net, data, likelihood, prior)
    if not isinstance(target.likelihood, Gaussian):
        raise ValueError(f"likelihood {target.likelihood.name!r}: a closed form needs Gaussian noise, 'regression'")
    with torch.no_grad():
        origin = torch.zeros_like(target.present)
        offset = target.forward(origin)
        phi = torch.func.jacrev(target.forward)(origin).reshape(-1, target.size)
        for sign in (1.0, -2.0):
            probe = sign * torch.linspace(0.5, 1.5, target.size, dtype=phi.dtype, device=phi.device)
            expected, found = (offset.flatten() + phi @ probe), target.forward(probe).flatten()
            if not torch.allclose(found, expected, rtol=1e-8, atol=1e-8 * float(found.abs().max())):
                raise ValueError("the network is not linear in its weights: take annealed_evidence")
        noise = float(target.likelihood.log_noise.exp())
        residual = (target.y - offset).flatten() / noise
        phi = phi / noise
        root = torch.linalg.cholesky(torch.eye(target.size, dtype=phi.dtype, device=phi.device) + phi.mT @ phi)
        half = torch.linalg.solve_triangular(root, (phi.mT @ residual)[:, None], upper=False)
        fit = 0.5 * (residual.square().sum() - half.square().sum()) + root.diagonal().log().sum()
        return -float(fit) - len(residual) * (math.log(noise) + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class Agreement:
    """Whether two evidences rank the same structures alike.

    Attributes:
        tau: Kendall's τ_b in [-1, 1].
        pairs: pairs of structures whose gold evidences differ by more than two standard errors.
        alike: how many of these the other evidence puts in the same order.
        same_best: whether the best structure is the same.
        regret: gold evidence of gold's best structure minus that of the other's best, nats.
    """

    tau: float
    pairs: int
    alike: int
    same_best: bool
    regret: float


def rank_agreement(
    gold: Mapping[str, float], found: Mapping[str, float], standard_errors: Mapping[str, float] | None = None
) -> Agreement:
    """Compare how a gold standard and another evidence rank structures.

    Args:
        gold, found: log evidence by the structure's name, nats.
        standard_errors: of gold, nats; zeros if None.

    Raises:
        ValueError: fewer than two structures, names that differ.

    >>> rank_agreement({"a": -1.0, "b": -2.0, "c": -5.0}, {"a": -3.0, "b": -2.0, "c": -5.0}).alike
    2
    """
    if len(gold) < 2 or set(gold) != set(found):
        raise ValueError(f"structures {sorted(gold)} and {sorted(found)}: expected the same names, at least two")
    errors = dict.fromkeys(gold, 0.0) if standard_errors is None else standard_errors
    told = [
        (one, other)
        for one, other in combinations(gold, 2)
        if abs(gold[one] - gold[other]) > TOLD_APART * math.hypot(errors[one], errors[other])
    ]
    alike = sum((gold[one] > gold[other]) == (found[one] > found[other]) for one, other in told)
    best, theirs = max(gold, key=gold.__getitem__), max(found, key=found.__getitem__)
    tau = float(kendalltau([gold[name] for name in gold], [found[name] for name in gold]).statistic)
    return Agreement(tau, len(told), alike, best == theirs, gold[best] - gold[theirs])
