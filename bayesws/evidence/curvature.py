"""What of the generalised Gauss-Newton matrix H an evidence is computed from: asked for, and said with the result."""

from dataclasses import dataclass

from bayesws.io.arguments import choice, seed_of, share, shown, whole

KINDS = ("full", "layer", "pathway", "kron", "diag")
KFACS = ("expand", "reduce")


@dataclass(frozen=True)
class Curvature:
    """How H, the generalised Gauss-Newton matrix of -log p(D | θ), is approximated.

    Attributes:
        kind: "full" (H whole, P² memory), "layer" (one joint block a layer, the covariances of its pathways kept),
            "pathway" (one exact block a pathway), "kron" (Kronecker factors of every pathway's block) or "diag".
        kfac: for "kron", what its positions (of a convolution, a sequence, several calls, the group) count as:
            "expand", independent examples, right where every position meets its own part of the loss; "reduce", one
            sum, right where outputs are averaged over positions by nearly linear maps (arXiv 2311.00636).
        exact_up_to: for "kron", layers with at most this many parameters keep their exact joint block.
        samples: random sign combinations of the columns of the likelihood's Hessian root, a datum; None takes all
            columns, and is exact. E[Ĥ] = H, and as log det is concave, E[log evidence] is an overestimate. Kronecker
            factors of inputs then take every fourth datum where there are 1000 patches and more for each of their rows.
        subset: share of the data in (0, 1]; below 1 the evidence is the subset bound (see `bound`).
        seed: of the signs and of the subset.

    >>> Curvature("full").bound
    'exact'
    >>> Curvature("layer").bound
    'lower bound: covariances between blocks left out'

    Raises:
        ValueError: unknown names, sizes that make no sense.
    """

    kind: str = "kron"
    kfac: str = "expand"
    exact_up_to: int = 0
    samples: int | None = None
    subset: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        choice("curvature", self.kind, KINDS)
        choice("kfac", self.kfac, KFACS)
        if self.kind != "kron" and (self.kfac, self.exact_up_to) != ("expand", 0):
            raise ValueError(f"kfac and exact_up_to with kind={self.kind!r}: they belong to 'kron'")
        kept = {
            "exact_up_to": whole("exact_up_to", self.exact_up_to, 0, also=" of parameters"),
            "samples": None if self.samples is None else whole("samples", self.samples, also=", or None for all"),
            "subset": share("subset", self.subset, "a share of the data, in (0, 1]", one=True),
            "seed": seed_of(self.seed),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @property
    def bound(self) -> str:
        """What the log evidence is, beside the one with the whole exact H (arXiv 2306.03968).

        Blocks leave covariances out, and the log determinant of a block diagonal is at least that of the whole
        (Fischer). A subset S of m of N data gives N/m (log p(D_S | θ) - ½ log det(I + Λ⁻¹ H_S)) - scatter, in
        expectation over subsets at most the evidence with all data (log det is submodular in the data).
        """
        parts = []
        if self.kind in ("layer", "pathway", "diag"):
            parts.append("lower bound: covariances between blocks left out")
        if self.kind == "kron":
            parts.append("no bound: every block is approximated by Kronecker factors")
        if self.samples is not None:
            parts.append("overestimate in expectation: sampled columns")
        if self.subset < 1:
            parts.append("lower bound in expectation: subset of the data")
        return "; ".join(parts) or "exact"


def curvature_named(curvature: "str | Curvature") -> Curvature:
    """ "full", "layer", "pathway", "kron" or "diag" as a Curvature; a Curvature as it is.

    Raises:
        ValueError: another name.
    """
    if isinstance(curvature, Curvature):
        return curvature
    if not isinstance(curvature, str):
        raise ValueError(f"curvature={shown(curvature)}: expected one of {', '.join(KINDS)}, or a Curvature")
    return Curvature(curvature)
