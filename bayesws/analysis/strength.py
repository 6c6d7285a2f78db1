"""How strongly does each layer share, and how sure is that? The posterior of all precisions, integrated or sampled."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from bayesws.analysis.quadrature import POINTS, drawn, refined
from bayesws.evidence.precision import LOG_BOUNDS
from bayesws.evidence.surface import Separate, Surface, surface
from bayesws.io.arguments import positive, seed_of, whole
from bayesws.io.json_files import Measured
from bayesws.io.tables import as_text
from bayesws.layers.contract import Layer, layers_of, named_pathways
from bayesws.training.result import FitResult

SPREAD = 3.0  # standard deviation of log δ under the hyperprior
LARGEST_RHAT = 1.01  # arXiv 1903.08008
FEWEST = 400  # effective samples, by the same
LOWER_MODE = 10.0  # nats below the highest: a mode this far down has no weight
DRAWS = 100_000  # by quadrature: the ends of an interval are then 2.5 ± 0.05 % and less
SPREADS = 6  # of the hyperprior to either side, that a grid begins with
OUTSIDE = 0.01  # of an interval, that is worth a note


@dataclass(frozen=True)
class LayerStrength:
    """The posterior of one layer's sharing strength.

    Attributes:
        name: the layer's path in the network.
        median: of ρ.
        interval: central 95 % credible interval of ρ, by the same posterior.
        fitted: ρ at the fitted precisions, which this posterior did not set: it may lie outside of the interval.
        r_hat: of ρ's samples, rank-normalised and split (arXiv 1903.08008); None for a quadrature.
        effective_samples: of the bulk of ρ's samples; None for a quadrature.
    """

    name: str
    median: Measured
    interval: tuple[Measured, Measured]
    fitted: Measured
    r_hat: float | None
    effective_samples: float | None

    def __post_init__(self) -> None:
        """Refuse a point outside of its interval.

        Raises:
            ValueError: a median that is not of the same posterior as the interval.
        """
        low, high = self.interval
        if self.median < low or self.median > high:
            raise ValueError(
                f"layer {self.name!r}: a median of {self.median:.3f} beside an interval of {low:.3f} to {high:.3f}: "
                "expected both of one posterior"
            )


@dataclass(frozen=True)
class SharingStrength:
    """The sharing strength of every layer in which the data can tell it: see `measurable_layers`.

    Attributes:
        layers: one row each.
        method: "quadrature", or "NUTS" where more than two precisions depend on each other.
        settings: hyperprior, draws and seed; chains and warm-up of NUTS.
        notes: what did not converge, or is to be known; one line each.
        samples: ρ by layer, (chains, draws); a quadrature's draws are independent, and one chain.
    """

    layers: list[LayerStrength]
    method: str
    settings: dict[str, float]
    notes: list[str]
    samples: dict[str, Tensor] = field(repr=False, compare=False)

    def __str__(self) -> str:
        """The table, and the notes."""
        return "\n".join([as_text(self.table()), *(f"note: {note}" for note in self.notes)])

    def table(self) -> Table:
        """Median and interval of every layer, and how NUTS did."""
        table = Table(
            title=f"Sharing strength ρ by {self.method}",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        sampled = any(row.r_hat is not None for row in self.layers)
        table.add_column("layer", overflow="fold")
        for name in ("median", "95 % interval", *(("R-hat", "effective samples") if sampled else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.layers:
            low, high = row.interval
            cells = [f"{row.median:.3f}", f"{low:.3f} to {high:.3f}"]
            if row.r_hat is not None and row.effective_samples is not None:
                cells += [f"{row.r_hat:.3f}", f"{row.effective_samples:.0f}"]
            table.add_row(row.name, *cells)
        return table

    def record(self) -> dict[str, object]:
        """Everything but the samples, for JSON."""
        layers = [asdict(row) for row in self.layers]
        return {"layers": layers, "method": self.method, "settings": self.settings, "notes": self.notes}


def sharing_strength(
    fit: FitResult, chains: int = 4, draws: int = 500, warmup: int = 300, seed: int = 0, spread: float = SPREAD
) -> SharingStrength:
    """The posterior of the sharing strength ρ of every layer whose pathways decide it: medians, 95 % intervals.

    ρ = β / (α + β) for a shared and a free pathway; the first one's share of the prior variance for `Branches`.

    p(log α, log β, ... | D) ∝ p(D | α, β, ...) Π N(log δ; 0, spread²), with the evidence as a function of all
    precisions near the fitted weights (see `evidence.surface`): exact for linear networks with Gaussian noise, else as
    good as the Laplace approximation and the curvature of the fit. The noise, and a soft stack, are held as fitted; a
    soft stack lowers ρ by its softness. A precision that the data do not bound (of a dead free pathway) is bounded by
    the hyperprior.

    Integrated on a grid, refined to where the mass is (`quadrature`), where no more than two precisions depend on each
    other given the data: curvatures "kron" and "diag", and "full" where there are no more in all. That is exact but
    for 1e-6 of the mass, has nothing to converge, and crosses from mode to mode. Else sampled by NUTS (Pyro), chains
    from dispersed starts, diagnosed by rank-normalised R-hat and effective sample size (arviz).

    Args:
        fit: with its posterior kept (`fit.posterior`).
        chains, draws, warmup: of NUTS.
        seed: of the random numbers.
        spread: standard deviation of every log δ under the hyperprior.

    Raises:
        ValueError: a fit without a posterior, or without a layer whose strength two pathways or more decide; fewer than
            one chain, than four draws.

    References: MacKay (1992); arXiv 1111.4246 (NUTS); arXiv 1903.08008 (diagnostics).
    """
    if not isinstance(fit, FitResult):
        raise ValueError(f"a {type(fit).__name__} in the place of a fit: expected a FitResult, of bws.fit or load")
    chains, draws, warmup = whole("chains", chains), whole("draws", draws, 4), whole("warmup", warmup)
    seed, spread = seed_of(seed), positive("spread", spread, "a positive standard deviation")
    layers = measurable_layers(fit.model)
    if not layers:
        raise ValueError(
            "no layer with two trained pathways that share: expected pathways=('shared', 'free'), or Branches"
        )
    target = _Posterior.of(fit, layers, spread)
    notes: list[str] = []
    by_grid = target.on_grid()
    settings: dict[str, float] = {"spread": spread, "seed": seed}
    if by_grid:
        samples = target.integrated(DRAWS, seed)[None]
        settings |= {"draws": DRAWS}
    else:
        modes = target.modes()
        if len(modes) > 1:
            notes.append(f"the evidence has {len(modes)} modes in the precisions: chains may not cross between them")
            warnings.warn(notes[-1], stacklevel=2)
        samples = _sampled(target, modes, chains, draws, warmup, seed)
        settings |= {"chains": chains, "draws": draws, "warmup": warmup}
    rows, by_layer = [], {}
    at_fit = {row.name: row.strength for row in fit.sharing}
    for name, layer in layers.items():
        rho = target.strengths(layer, samples)
        by_layer[name] = rho
        diagnostics = (None, None) if by_grid else _diagnosed(name, rho, notes)
        low, median, high = rho.flatten().quantile(torch.tensor([0.025, 0.5, 0.975], dtype=rho.dtype)).tolist()
        fitted = at_fit[name]
        if not low - OUTSIDE <= fitted <= high + OUTSIDE:
            notes.append(
                f"layer {name!r}: ρ at the fitted precisions, {fitted:.3f}, is outside this interval: the precisions "
                "had not converged, or training set them by another curvature or schedule than this posterior's"
            )
        rows.append(LayerStrength(name, median, (low, high), fitted, *diagnostics))
    return SharingStrength(rows, "quadrature" if by_grid else "NUTS", settings, notes, by_layer)


def measurable_layers(net: nn.Module) -> dict[str, Layer]:
    """The layers, by name, whose strength the data can tell: two or more trained pathways decide it."""
    return {name: layer for name, layer in layers_of(net).items() if len(layer.sharing_pathways()) > 1}


@dataclass(frozen=True)
class _Posterior:
    """log p(precisions | D), a function of a vector: one entry a precision that bears on a sharing layer.

    Attributes:
        surface: the evidence.
        groups: for every entry, the pathways of that precision.
        fitted: the entries as fitted.
        spread: of the hyperprior.
    """

    surface: Surface
    groups: list[list[str]]
    fitted: Tensor
    spread: float

    @classmethod
    def of(cls, fit: FitResult, layers: Mapping[str, Layer], spread: float) -> "_Posterior":
        if not any(name.startswith("gradient.") for name in fit.posterior):
            raise ValueError("this fit was kept without a posterior: fit again, with keep_posterior=True")
        found = surface(fit.model, fit.posterior, fit.likelihood)
        names = [name for name, _ in named_pathways(fit.model)]
        if isinstance(found, Separate):  # the other layers' precisions are independent of theirs
            within = {layer.full_name(pathway) for layer in layers.values() for pathway in layer.pathways}
            names = [name for name in names if name in within]
            found = found.only(names)
        tensors = {id(fit.prior[name]): fit.prior[name] for name in names}
        groups = [[name for name in names if id(fit.prior[name]) == key] for key in tensors]
        fitted = torch.stack([t.detach().double().cpu() for t in tensors.values()])
        return cls(found, groups, fitted, spread)

    def __call__(self, z: Tensor) -> Tensor:
        """Log density at log precisions z, up to a constant."""
        by_name = {name: z[i] for i, names in enumerate(self.groups) for name in names}
        return self.surface(by_name) - 0.5 * (z / self.spread).square().sum()

    @torch.no_grad()
    def strengths(self, layer: Layer, z: Tensor) -> Tensor:
        """ρ of a layer for log precisions z (..., entries)."""
        assert layer.strength is not None
        place = {pathway: i for i, names in enumerate(self.groups) for pathway in names}
        return layer.strength({name: z[..., place[layer.full_name(name)]] for name in layer.pathways})

    def modes(self) -> list[Tensor]:
        """Local maxima within LOWER_MODE of the highest, the highest first: those that ascents from a lattice reach."""
        size = len(self.fitted)
        corners = torch.eye(size, dtype=torch.float64)
        starts = [self.fitted] + [self.fitted + shift * corner for corner in corners for shift in (-5, 5)]
        found: list[tuple[float, Tensor]] = []
        for start in starts:
            beginning = start.clamp(*LOG_BOUNDS).numpy()
            ascent = minimize(self._descent, beginning, jac=True, method="L-BFGS-B", bounds=[LOG_BOUNDS] * size)
            found.append((-float(ascent.fun), torch.from_numpy(ascent.x)))
        found.sort(key=lambda pair: -pair[0])
        modes: list[Tensor] = []
        for value, z in found:
            if value > found[0][0] - LOWER_MODE and all((z - other).abs().max() > 0.5 for other in modes):
                modes.append(z)
        return modes

    def _descent(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log density and its gradient."""
        point = torch.from_numpy(z).requires_grad_()
        value = -self(point)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy()

    def integrated(self, count: int, seed: int) -> Tensor:
        """Independent draws (count, entries), every part that is independent of the others given the data by a grid."""
        generator = torch.Generator().manual_seed(seed)
        samples = torch.empty(count, len(self.groups), dtype=torch.float64)
        reach = SPREADS * self.spread
        for entries in self.dependent():
            sides, logs = refined(partial(self._on_lattice, entries), (-reach, reach), len(entries))
            samples[:, entries] = drawn(sides, logs, count, generator)
        return samples

    def _on_lattice(self, entries: list[int], sides: list[Tensor]) -> Tensor:
        """Log density of a part, up to a constant, at all combinations of its log precisions."""
        groups = [self.groups[i] for i in entries]
        own = self.surface
        if isinstance(own, Separate):
            own = own.only([name for names in groups for name in names])
        mesh = torch.meshgrid(*sides, indexing="ij")
        return own.on_lattice(groups, sides) - 0.5 * sum((z / self.spread).square() for z in mesh)

    def on_grid(self) -> bool:
        """Whether `integrated` can draw: no more precisions depend on each other than a grid has axes."""
        return all(len(entries) in POINTS for entries in self.dependent())

    def dependent(self) -> list[list[int]]:
        """The entries in parts that are independent of each other given the data; all in one where H is dense."""
        if not isinstance(self.surface, Separate):
            return [list(range(len(self.groups)))]
        place = {name: i for i, names in enumerate(self.groups) for name in names}
        links = np.zeros((len(self.groups),) * 2)
        for inner, (outer, _) in self.surface.within.items():
            links[place[inner], place[outer]] = 1
        _, labels = connected_components(links, directed=False)
        return [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]


def _sampled(target: _Posterior, modes: list[Tensor], chains: int, draws: int, warmup: int, seed: int) -> Tensor:
    """(chains, draws, entries) by NUTS; chain c starts beside mode c, c modulo their number."""
    import pyro
    from pyro import distributions as dist
    from pyro.infer import MCMC, NUTS
    from pyro.infer.autoguide.initialization import init_to_value

    size = len(target.fitted)
    prior = dist.Normal(torch.zeros(size, dtype=torch.float64), target.spread).to_event(1)

    def model() -> None:
        z = pyro.sample("log_precisions", prior)
        pyro.factor("evidence", target(z) + 0.5 * (z / target.spread).square().sum())

    found = []
    random = pyro.util.get_rng_state()
    try:
        for chain in range(chains):
            pyro.set_rng_seed((seed * 1000 + chain) % 2**32)  # numpy's generator takes no more
            start = modes[chain % len(modes)] + torch.randn(size, dtype=torch.float64)
            init = init_to_value(values={"log_precisions": start})
            kernel = NUTS(model, init_strategy=init)
            run = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
            run.run()
            found.append(run.get_samples()["log_precisions"])
    finally:
        pyro.util.set_rng_state(random)
    return torch.stack(found)


def _diagnosed(name: str, rho: Tensor, notes: list[str]) -> tuple[float, float]:
    """R-hat and effective sample size of ρ; what is amiss is added to the notes."""
    import arviz

    if float(rho.std()) < 1e-12:
        return 1.0, float(rho.numel())  # nothing varies, as where ρ is 1 to the last digit
    values = rho.numpy()
    r_hat, size = float(arviz.rhat(values)) if len(rho) > 1 else math.nan, float(arviz.ess(values))
    if r_hat > LARGEST_RHAT or size < FEWEST:
        notes.append(
            f"layer {name!r}: R-hat {r_hat:.3f}, {size:.0f} effective samples (wanted: at most {LARGEST_RHAT}, at "
            f"least {FEWEST}); take more draws"
        )
    return r_hat, size
