"""What of the generalised Gauss-Newton matrix H an evidence is computed from: asked for, and said with the result."""

from dataclasses import dataclass, replace

from bayesws.io.arguments import choice, seed_of, share, shown, whole

KINDS = ("full", "layer", "pathway", "kron", "diag")
KFACS = ("expand", "reduce")
ROWS = 2000  # data that are drawn for the determinant in function space where there are more


@dataclass(frozen=True)
class Curvature:
    """How H, the generalised Gauss-Newton matrix of -log p(D | θ), is approximated.

    Attributes:
        kind: "full" (H whole, every covariance between layers and pathways kept: in function space, R rows and R²
            numbers a pathway, where data × columns R are fewer than the parameters P; P² else. A row has P numbers,
            fewer where a layer has one position, see `products`), "layer" (one joint block
            a layer, the covariances of its pathways kept), "pathway" (one exact block a pathway), "kron" (Kronecker
            factors of every pathway's block) or "diag".
        kfac: for "kron", what its positions (of a convolution, a sequence, several calls, the group) count as:
            "expand", independent examples, right where every position meets its own part of the loss; "reduce", one
            sum, right where outputs are averaged over positions by nearly linear maps (arXiv 2311.00636).
        exact_up_to: for "kron", layers with at most this many parameters keep their exact joint block.
        samples: random sign combinations of the columns of the likelihood's Hessian root, a datum; None takes all
            columns, and is exact. E[Ĥ] = H, and as log det is concave, E[log evidence] is an overestimate: for "full"
            with one sample by a share of the Occam factor of the order of γ / 4N, of γ effective parameters. With two
            and more the jackknife takes that order away for "full", that of drawn rows, too (see `jackknife`).
            Kronecker factors of inputs then take every fourth datum where there are 1000 patches and more for each of
            their rows.
        subset: share of the data in (0, 1]; below 1 the evidence is the subset bound (see `bound`).
        seed: of the signs, of the subset and of the rows.
        rows: for "full" with samples, how many data the determinant is of where there are more: drawn as they matter
            and weighted, so that E[Ĥ] = H still holds (see `thinning`). The data fit is always that of all.

    >>> Curvature("full").bound
    'exact'
    >>> Curvature("layer").bound
    'lower bound: covariances between blocks left out'
    >>> Curvature("full", samples=1).bound
    'overestimate in expectation: sampled columns, and rows where there are more than 2000 data'
    >>> Curvature("full", samples=2).bound
    'estimate: 2 sampled columns, and rows where there are more than 2000 data, with the jackknife'

    Raises:
        ValueError: unknown names, sizes that make no sense.
    """

    kind: str = "kron"
    kfac: str = "expand"
    exact_up_to: int = 0
    samples: int | None = None
    subset: float = 1.0
    seed: int = 0
    rows: int = ROWS

    def __post_init__(self) -> None:
        choice("curvature", self.kind, KINDS)
        choice("kfac", self.kfac, KFACS)
        if self.kind != "kron" and (self.kfac, self.exact_up_to) != ("expand", 0):
            raise ValueError(f"kfac and exact_up_to with kind={self.kind!r}: they belong to 'kron'")
        if self.rows != ROWS and (self.kind != "full" or self.samples is None):
            raise ValueError(
                f"rows={shown(self.rows)} with kind={self.kind!r}, samples={shown(self.samples)}: rows are drawn in "
                "function space; use Curvature('full', samples=1, rows=...)"
            )
        kept = {
            "exact_up_to": whole("exact_up_to", self.exact_up_to, 0, also=" of parameters"),
            "samples": None if self.samples is None else whole("samples", self.samples, also=", or None for all"),
            "subset": share("subset", self.subset, "a share of the data, in (0, 1]", one=True),
            "seed": seed_of(self.seed),
            "rows": whole("rows", self.rows, also=" of data"),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    def exact(self) -> "Curvature":
        """The same kind of all columns and all data: nothing is drawn, so there is no seed.

        >>> Curvature("full", samples=1, rows=500, seed=3).exact() == Curvature("full")
        True
        """
        return replace(self, samples=None, subset=1.0, seed=0, rows=ROWS)

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
            rows = f", and rows where there are more than {self.rows} data" if self.kind == "full" else ""
            if self.kind == "full" and self.samples > 1:
                parts.append(f"estimate: {self.samples} sampled columns{rows}, with the jackknife")
            else:
                parts.append(f"overestimate in expectation: sampled columns{rows}")
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
