"""Which network do the data want? Networks trained alike and ranked by their evidence, with nothing held out."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.reading import as_tensors
from bayesws.io.arguments import path_of, whole
from bayesws.io.only_writer import only_writer
from bayesws.layers.contract import layers_of
from bayesws.training.result import FitResult
from bayesws.trials.ranking import Ranking
from bayesws.trials.starts import Start, best_of, made, started
from bayesws.trials.store import as_file_name

LARGEST_WHOLE = 2000  # parameters of a network whose whole Hessian is taken
LARGEST_LAYER = 10_000  # parameters of a layer whose joint block is taken


def select(
    networks: Mapping[str, nn.Module | Callable[[], nn.Module]],
    data: Any,
    likelihood: str | Likelihood = "classification",
    seeds: int = 1,
    *,
    test: Any = None,
    curvature: str | Curvature | None = None,
    evidence_curvature: str | Curvature | None = None,
    checkpoints: str | Path | None = None,
    **settings: Any,
) -> Ranking:
    """Train every network by the evidence with one schedule, and rank them by one and the same evidence.

    p(network | D) ∝ p(D | network), at equal prior odds. Of several starts the best counts for its network.

    Kronecker factors err by different amounts for different stacks (fixed or soft, few elements or many), so the
    evidence that ranks is computed anew at the end, at the precisions and noise that training found. By default it is
    "full" (exact, up to the Laplace approximation) where no network has more than 2000 parameters, else "layer" (a
    lower bound: covariances between layers are left out) where no layer has more than 10 000, else "kron", which is no
    bound at all. A difference of two lower bounds is itself no bound: a lead of a few nats between different
    architectures is a tie. The choice and its meaning are in the result's settings, "evidence_curvature" and "bound".

    Args:
        networks: by name: networks, or functions that make one, called with torch's seed set. Networks that are given
            as such start every time from the weights they have.
        data: a pair of tensors (x, y), a Dataset or a DataLoader; all of it is trained on.
        likelihood: as for `fit`, the same for all.
        seeds: starts for each network, 0 to seeds - 1; with starts=k among the settings each is the best of k.
        test: held-out data, as `data`, for a column beside the evidence and for `Ranking.disagreement`; it chooses
            nothing.
        curvature: of the steps on the hyperparameters, as for `fit`; None is as exact as each network can afford.
        evidence_curvature: of the evidence that ranks; None chooses as above.
        checkpoints: a folder with one of `fit`'s checkpoints for every network and start: the same call goes on from
            there, to the same numbers.
        settings: further arguments of `fit`, such as `epochs`.

    Raises:
        ValueError: no networks, fewer than one seed, a folder that another process writes into; what `fit` raises, with
            the network's name before it.
    """
    if not isinstance(networks, Mapping):
        raise ValueError(f"networks of type {type(networks).__name__}: expected a mapping of names to networks")
    if not networks:
        raise ValueError("no networks: expected a mapping of names to networks, or to functions that make one")
    seeds = whole("seeds", seeds)
    if reserved := next((name for name in ("objective", "seed") if name in settings), None):
        raise ValueError(f"{reserved}={settings[reserved]!r}: networks train by the evidence from seeds 0, 1, ...")
    test = None if test is None else as_tensors(test)
    noise_model = likelihood_named(likelihood)
    steps = None if curvature is None else curvature_named(curvature)
    nets = {name: made(name, network, 0) for name, network in networks.items()}
    asked = comparable_curvature(nets.values()) if evidence_curvature is None else curvature_named(evidence_curvature)
    common: dict[str, Any] = {"keep_posterior": False} | settings
    starts, fits = [], {}
    kept = None if checkpoints is None else path_of(checkpoints)
    with nullcontext() if kept is None else only_writer(kept):
        for name, network in networks.items():
            tried: list[tuple[FitResult, Start]] = []
            for seed in range(seeds):
                net = nets[name] if seed == 0 else made(name, network, seed)
                if kept is not None:
                    common["checkpoint"] = kept / f"{as_file_name(name)}-{seed}"
                tried.append(started(name, net, data, noise_model, steps, asked, seed=seed, test=test, **common))
            fits[name] = max(tried, key=lambda pair: pair[1].log_evidence)[0]
            starts += [start for _, start in tried]
    return ranking_of(starts, noise_model.name, steps, asked, fits)


def ranking_of(
    starts: Iterable[Start],
    likelihood: str,
    curvature: Curvature | None,
    evidence_curvature: Curvature,
    fits: dict[str, FitResult] | None = None,
) -> Ranking:
    """The ranking of networks by the best of their starts.

    Args:
        starts: of all networks, as many of each.
        likelihood: its name.
        curvature: of the steps; None where each network had what `fit` takes by default.
        evidence_curvature: of the evidence that ranks.
        fits: the best start of every network by its name, where they are at hand.

    Raises:
        ValueError: starts on different data.
    """
    by_name: dict[str, list[Start]] = {}
    for start in starts:
        by_name.setdefault(start.name, []).append(start)
    rows = sorted((best_of(tried) for tried in by_name.values()), key=lambda row: -row.log_evidence)
    last = next(reversed(by_name.values()))[-1]
    record = {
        "likelihood": likelihood,
        "seeds": len(by_name[last.name]),
        "examples": last.examples,
        "schedule": last.schedule,
        "curvature": None if curvature is None else asdict(curvature),
        "evidence_curvature": asdict(evidence_curvature),
        "bound": f"curvature {evidence_curvature.kind!r}, {evidence_curvature.bound}",
    }
    return Ranking(rows, record, fits or {})


def comparable_curvature(nets: Iterable[nn.Module]) -> Curvature:
    """The sharpest curvature that all networks can afford: "full", "layer", or "kron" (see `select`)."""
    largest, whole = 0, 0
    for net in nets:
        layers = [sum(p.numel for p in layer.pathways.values()) for layer in layers_of(net).values()]
        largest, whole = max([largest, *layers]), max(whole, sum(layers))
    if whole <= LARGEST_WHOLE:
        return Curvature("full")
    return Curvature("layer" if largest <= LARGEST_LAYER else "kron")
