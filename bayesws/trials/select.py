"""Which network do the data want? Candidates trained alike and ranked by their evidence, with nothing held out."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from bayesws.data import ImageData
from bayesws.evidence.batches import as_tensors
from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.likelihood import Likelihood, likelihood_named
from bayesws.evidence.objective import log_evidence
from bayesws.layers.contract import layers_of
from bayesws.layers.identify import identify_groups
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.models import WSCNN
from bayesws.sharing.groups import Group, known_group
from bayesws.training.fit import fit
from bayesws.training.result import FitResult
from bayesws.training.summaries import EvidenceSummary
from bayesws.trials.ranking import Candidate, Ranking

SAMPLED = Curvature("kron", samples=1)
WHOLE_UP_TO = 2000  # parameters of a network whose whole Hessian is taken
LAYERS_UP_TO = 10_000  # parameters of a layer whose joint block is taken
WIDTH = 32  # with half of it the large groups have too few channels left to tell ten digits apart
KERNEL = 3


def select(
    candidates: Mapping[str, nn.Module | Callable[[], nn.Module]],
    data: Any,
    likelihood: str | Likelihood = "classification",
    seeds: int = 1,
    *,
    test: tuple[Tensor, Tensor] | None = None,
    curvature: str | Curvature = SAMPLED,
    evidence_curvature: str | Curvature | None = None,
    checkpoints: str | Path | None = None,
    **settings: Any,
) -> Ranking:
    """Train every candidate by the evidence with one schedule, and rank them by one and the same evidence.

    p(candidate | D) ∝ p(D | candidate), at equal prior odds. Of several starts the best counts for its candidate.

    Kronecker factors err by different amounts for different stacks (fixed or soft, few elements or many), so the
    evidence that ranks is computed anew at the end, at the precisions and noise that training found. By default it is
    "full" (exact, up to the Laplace approximation) where no candidate has more than 2000 parameters, else "layer" (a
    lower bound: covariances between layers are left out) where no layer has more than 10 000, else "kron", which is no
    bound at all. A difference of two lower bounds is itself no bound: a lead of a few nats between different
    architectures is a tie. The choice and its meaning are in the result's settings, "evidence_curvature" and "bound".

    Args:
        candidates: by name: networks, or functions that make one, called with torch's seed set. Networks that are
            given as such start every time from the weights they have.
        data: a pair of tensors (x, y), a Dataset or a DataLoader; all of it is trained on.
        likelihood: as for `fit`, the same for all.
        seeds: starts for each candidate, 0 to seeds - 1.
        test: held-out (x, y), for a column beside the evidence and for `Ranking.disagreement`; it chooses nothing.
        curvature: of the steps on the hyperparameters, as for `fit`.
        evidence_curvature: of the evidence that ranks; None chooses as above.
        checkpoints: a folder with one of `fit`'s checkpoints for every candidate and start: the same call goes on from
            there, to the same numbers.
        settings: further arguments of `fit`, such as `epochs`.

    Raises:
        ValueError: no candidates, fewer than one seed; what `fit` raises, with the candidate's name before it.
    """
    if not isinstance(candidates, Mapping):
        raise ValueError(f"candidates of type {type(candidates).__name__}: expected a mapping of names to networks")
    if not candidates:
        raise ValueError("no candidates: expected a mapping of names to networks, or to functions that make one")
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: expected at least 1")
    if reserved := next((name for name in ("objective", "seed") if name in settings), None):
        raise ValueError(f"{reserved}={settings[reserved]!r}: candidates train by the evidence from seeds 0, 1, ...")
    noise_model, steps = likelihood_named(likelihood), curvature_named(curvature)
    nets = {name: made(name, candidate, 0) for name, candidate in candidates.items()}
    asked = comparable_curvature(nets.values()) if evidence_curvature is None else curvature_named(evidence_curvature)
    x, y = as_tensors(data)
    common: dict[str, Any] = {"keep_posterior": False} | settings
    rows, fits = [], {}
    for name, candidate in candidates.items():
        started = time.perf_counter()
        tried: list[tuple[FitResult, EvidenceSummary]] = []
        for seed in range(seeds):
            net = nets[name] if seed == 0 else made(name, candidate, seed)
            try:
                if checkpoints is not None:
                    common["checkpoint"] = Path(checkpoints) / f"{_as_file(name)}-{seed}"
                result = fit(net, data, noise_model, "evidence", steps, seed=seed, **common)
                tried.append((result, _evidence(result, (x, y), asked)))
            except (ValueError, FloatingPointError, RuntimeError) as error:
                kind = FloatingPointError if isinstance(error, FloatingPointError) else ValueError
                raise kind(f"candidate {name!r}: {error}") from error
        by_seed = [evidence.log_evidence for _, evidence in tried]
        seed = max(range(seeds), key=by_seed.__getitem__)
        best, evidence = tried[seed]
        fits[name] = best
        rows.append(
            Candidate(
                name=name,
                log_evidence=by_seed[seed],
                by_seed=by_seed,
                seed=seed,
                parameters=sum(p.parameters for p in evidence.by_pathway.values()),
                sharing=replace(best, evidence=evidence).sharing,
                groups=_groups(best.model),
                seconds=time.perf_counter() - started,
                notes=list(best.notes),
                test_nll=None if test is None else best.nll(*test, kind="map"),
            )
        )
    rows.sort(key=lambda row: -row.log_evidence)
    record = {
        "likelihood": noise_model.name,
        "seeds": seeds,
        "examples": len(x),
        "schedule": best.recipe.schedule,
        "curvature": asdict(steps),
        "evidence_curvature": asdict(asked),
        "bound": f"curvature {asked.kind!r}, {asked.bound}",
    }
    return Ranking(rows, record, fits)


def _as_file(name: str) -> str:
    """A name as a file may have it, different for different names."""
    return quote(name, safe=" ·,()+")


def comparable_curvature(nets: Iterable[nn.Module]) -> Curvature:
    """The sharpest curvature that all networks can afford: "full", "layer", or "kron" (see `select`)."""
    largest, whole = 0, 0
    for net in nets:
        layers = [sum(p.numel for p in layer.pathways.values()) for layer in layers_of(net).values()]
        largest, whole = max([largest, *layers]), max(whole, sum(layers))
    if whole <= WHOLE_UP_TO:
        return Curvature("full")
    return Curvature("layer" if largest <= LAYERS_UP_TO else "kron")


def group_candidates(images: ImageData, groups: list[str], width: int = WIDTH, layers: int = 2) -> dict[str, Any]:
    """A `WSCNN` for each group that shares over it and nothing else, all of equal width: functions by name.

    Channels × group size = `width` in every layer, so that all have the same feature maps and only the number of
    independent weights differs. They have no free pathway: with one, a network over the wrong group would buy itself
    out of it where it has to, and the evidence would answer another question. On upright digits (60 epochs, width 16)
    half turns with a free pathway come out 39 nats above no sharing; without it they are 100 below.

    A group can only win where its channels are enough for the task: at width 16 the eight motions of the square leave
    two, and quarter turns win even on images moved by all eight; at width 32 the eight do.

    Args:
        images: whose channels and classes the networks take.
        groups: names of known groups on 3×3 kernels; "none" shares over nothing.
        width: channels times group elements.
        layers: weight-sharing layers.

    Raises:
        ValueError: an unknown group, one named twice, a width that its size does not divide.
    """
    found: dict[str, Any] = {}
    for name in groups:
        _ = _known(name, width)  # fails here, not after the first fits
        if name in found:
            raise ValueError(f"group {name!r} is named twice: expected every candidate once")
        found[name] = partial(group_network, (name,) * layers, images, width)
    return found


def group_network(groups: tuple[str, ...], images: ImageData, width: int = WIDTH) -> WSCNN:
    """A `WSCNN` with a known group of its own for every layer, that shares over these and nothing else.

    Args:
        groups: for every layer the name of a known group on 3×3 kernels; "none" shares over nothing.
        images: whose channels and classes the network takes.
        width: feature maps of every layer: channels times group elements.

    Raises:
        ValueError: an unknown group, a width that its size does not divide.
    """
    return WSCNN(
        in_channels=images.train[0].shape[1],
        num_classes=images.num_classes,
        hidden_channels=width,
        group_size=1,
        kernel_size=KERNEL,
        layers=len(groups),
        group=tuple(_known(name, width).name for name in groups),
        pathways=("shared",),
    )


def _known(name: str, width: int) -> Group:
    group = known_group("trivial" if name == "none" else name, KERNEL, KERNEL)
    if width % group.size:
        raise ValueError(f"width={width} with {name!r}, {group.size} elements: expected a multiple of its size")
    return group


def made(name: str, candidate: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network itself, or what its function makes from a seed; the candidate's name is for errors."""
    if isinstance(candidate, nn.Module):
        return candidate
    torch.manual_seed(seed)
    net = candidate() if callable(candidate) else candidate
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"candidate {name!r} of type {type(net).__name__}: expected a network, or a function that makes one"
        )
    return net


def _evidence(result: FitResult, data: tuple[torch.Tensor, torch.Tensor], curvature: Curvature) -> EvidenceSummary:
    place = next(result.model.parameters()).device
    on_device = tuple(part.to(place) for part in data)
    with torch.no_grad():
        return EvidenceSummary.of(
            log_evidence(result.model, on_device, result.likelihood, curvature, prior=result.prior)
        )


def _groups(net: nn.Module) -> dict[str, str]:
    """The known group of every layer that shares, by name."""
    shares = any(isinstance(layer, WeightSharing) and layer.shared is not None for layer in net.modules())
    return {name: found.name or "no group" for name, found in identify_groups(net).items()} if shares else {}
