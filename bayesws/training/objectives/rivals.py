"""Other ways to say how much each layer shares, and how every way without the evidence chooses its settings.

All train the same network by the mean negative log likelihood with penalties; they differ in the penalties that are
tried. What is tried is chosen from by the negative log likelihood on a held-out split of the training data, one axis
after the other (first the weight decay, then, where there are any, the axes of the rival's own), after the same
training on the rest; then the network is trained on all of it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Categorical, Gaussian
from bayesws.layers.contract import named_pathways
from bayesws.training.checkpoint import Checkpoint
from bayesws.training.loop import Run
from bayesws.training.schedule import Penalties, Schedule, check_weight_decays

Axis = Callable[[Penalties], list[Penalties]]


class Rival(Protocol):
    """What an objective without the evidence starts from, and the axes along which it looks for better penalties."""

    @property
    def name(self) -> str:
        """As `fit` knows it."""
        ...

    def start(self, free: Sequence[str], penalties: Penalties) -> Penalties:
        """The penalties that the search begins with; `free` names the pathways that break a layer's sharing."""
        ...

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """After the weight decay: what to try around the best so far."""
        ...


@dataclass(frozen=True)
class Task:
    """The plain task loss: one weight decay for all weights."""

    name = "task"

    def start(self, free: Sequence[str], penalties: Penalties) -> Penalties:
        """As they are given."""
        return penalties

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """None but the weight decay."""
        return []


@dataclass(frozen=True)
class Fixed:
    """Residual pathway priors (arXiv 2112.01388): precisions of shared and free weights in a ratio set by hand.

    Attributes:
        ratio: r, how many times as precise the prior of the free weights is, in every layer.
    """

    ratio: float = 100.0
    name = "fixed"

    def __post_init__(self) -> None:
        _check_positive(ratio=self.ratio)

    def start(self, free: Sequence[str], penalties: Penalties) -> Penalties:
        """The ratio, in every layer."""
        return replace(penalties, ratios=dict.fromkeys(free, self.ratio))

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """None but the weight decay."""
        return []


@dataclass(frozen=True)
class Validated:
    """A ratio for every layer, chosen on the held-out split, layer by layer from the first.

    In the spirit of sharing discovery by a validation split (Yeh et al., AISTATS 2022), over this library's precisions:
    no hypergradient, but every ratio trained and tested.

    Attributes:
        ratios: what is tried; the search starts with the first in all layers.
    """

    ratios: tuple[float, ...] = (100.0, 1.0, 10.0, 1000.0)
    name = "validated"

    def __post_init__(self) -> None:
        _check_positive(ratios=self.ratios)

    def start(self, free: Sequence[str], penalties: Penalties) -> Penalties:
        """The first ratio, in every layer."""
        return replace(penalties, ratios=dict.fromkeys(free, self.ratios[0]))

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """One a layer."""

        def of(name: str) -> Axis:
            return lambda best: [replace(best, ratios={**best.ratios, name: ratio}) for ratio in self.ratios]

        return [of(name) for name in free]


@dataclass(frozen=True)
class Constrained:
    """Adaptive constrained equivariance (arXiv 2505.13631): free weights constrained away by dual ascent, with slack.

    Attributes:
        slacks: weights s of ½ s ‖u‖², nats per datum, that are tried; the search starts with the first, the source's.
    """

    slacks: tuple[float, ...] = (1.0, 0.1, 0.01)
    name = "constrained"

    def __post_init__(self) -> None:
        _check_positive(slacks=self.slacks)

    def start(self, free: Sequence[str], penalties: Penalties) -> Penalties:
        """The first slack."""
        return replace(penalties, slack=self.slacks[0])

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """The slack."""
        return [lambda best: [replace(best, slack=slack) for slack in self.slacks]]


RIVALS: dict[str, type[Any]] = {kind.name: kind for kind in (Task, Fixed, Validated, Constrained)}
OBJECTIVES = ("evidence", *RIVALS)


def rival_named(objective: str | Rival) -> Rival | None:
    """A rival by its name, or as it is; None for the evidence.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(objective, str):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}: expected one of {', '.join(OBJECTIVES)}")
    return None if objective == "evidence" else RIVALS[objective]()


def choose_penalties(
    rival: Rival,
    net: nn.Module,
    data: Batches,
    likelihood: Categorical | Gaussian,
    plan: Schedule,
    seed: int,
    grid: Sequence[float],
    penalties: Penalties,
    held_out: float,
    watching: Callable[[str], Any],
    checkpoint: Checkpoint | None = None,
) -> Penalties:
    """The penalties with the smallest held-out negative log likelihood, found axis by axis.

    Args:
        rival: what is searched.
        net, data, likelihood, plan, seed: as the final training has them; none is changed.
        grid: weight decays, per datum.
        penalties: normaliser and entropy, which are not searched.
        held_out: share of the data.
        watching: makes what is told of each training, from a line about it.
        checkpoint: where to go on from, and to write to.

    Raises:
        ValueError: a grid that nothing can be chosen from; a rival of free weights for a network without.
    """
    check_weight_decays(grid)
    free = [name for name, pathway in named_pathways(net) if pathway.breaks_sharing]
    if not free and not isinstance(rival, Task):
        raise ValueError(
            f"objective={rival.name!r} is about free weights beside shared ones: this network has none; "
            "use 'task' or 'evidence'"
        )
    kept, held = data.split(held_out, torch.Generator().manual_seed(seed))

    def held_out_loss(tried: Penalties) -> float:
        trial, noise_model = copy.deepcopy(net), copy.deepcopy(likelihood)
        run = Run(trial, kept, noise_model, plan, seed, rival.name, Curvature(), tried)
        run.train(watching(f"{rival.name}, weight decay {tried.weight_decay:g}"), checkpoint, repr(tried))
        trial.eval()
        with torch.no_grad():
            return -sum(float(noise_model.log_prob(trial(x), y)) for x, y in held)

    def decays(best: Penalties) -> list[Penalties]:
        return [replace(best, weight_decay=decay) for decay in grid]

    best = rival.start(free, penalties)
    losses = {} if checkpoint is None else checkpoint.losses()
    for axis in (decays, *rival.axes(free)):
        candidates = axis(best)
        if len(candidates) > 1:  # of one there is nothing to choose
            for tried in candidates:
                if repr(tried) in losses:
                    continue
                losses[repr(tried)] = held_out_loss(tried)
                if checkpoint is not None:
                    checkpoint.keep_losses(losses)
            best = min(candidates, key=lambda tried: losses[repr(tried)])
        else:
            best = candidates[0]
    return best


def _check_positive(**given: float | tuple[float, ...]) -> None:
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(0 < v < float("inf") for v in values):
            raise ValueError(f"{name}={value!r}: expected positive numbers")
