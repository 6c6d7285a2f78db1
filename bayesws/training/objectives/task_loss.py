"""The task loss as the objective: the mean negative log likelihood with penalties that a held-out split chooses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayesws.evidence.function_space import FunctionSpace
from bayesws.evidence.jackknife import Jackknifed
from bayesws.evidence.objective import LaplacePass
from bayesws.io.arguments import flag, positive, real, share, shown
from bayesws.layers.contract import (
    named_pathways,
    shaping_precisions,
    starting_log_precisions,
    structure,
    structures,
)
from bayesws.training.burn_in import BurnIn
from bayesws.training.objectives.by_evidence import set_precisions
from bayesws.training.objectives.objective import HeldOut, LossTerm, Setting, check_terms
from bayesws.training.structure import Settling, check_regularisers, regularised

FINAL_STEPS, FINAL_DAMPING = 200, 0.5  # of the fixed point on the precisions that no training has set
LAST_STEPS = 6  # of these with several sampled columns, from where one has led: a tenth of the time a step


@dataclass(frozen=True)
class Penalties:
    """What is added to the mean negative log likelihood, and the rate: chosen before the last training, fixed in it.

    Attributes:
        weight_decay: λ of ½ λ Σ_p r_p ‖θ_p‖², per datum.
        normaliser, entropy: weights of the structure's regularisers.
        ratios: r_p by pathway, 1 for those that are not named.
        slack: s of the constrained free weights; None does not constrain them.
        learning_rate: of the weights; None is the schedule's.
    """

    weight_decay: float = 0.0
    normaliser: float = 0.0
    entropy: float = 0.0
    ratios: Mapping[str, float] = field(default_factory=dict)
    slack: float | None = None
    learning_rate: float | None = None


Axis = Callable[[Penalties], list[Penalties]]


@dataclass(frozen=True, kw_only=True)
class TaskLoss:
    """Weights and structure minimise the mean of -log p + ½ λ ‖θ‖², with the weight decay chosen on held-out data.

    λ is the one of `weight_decays` with the smallest negative log likelihood on a held-out split of the training data,
    after the same training on the rest; then all data are trained on. A soft stack's residual stays at its start, 0, so
    that W_g = R_g w is the published layer. The evidence is reported with the precisions that are best for the weights
    in the end.

    Attributes:
        weight_decays: grid of λ, per datum.
        learning_rates: tried with the best weight decay, beside the schedule's own, at which that was chosen. A rate
            that another objective liked may be none for this one.
        normaliser: weight of the normaliser of the logits, summed over the layers (arXiv 2412.04594; 0.1 in the
            released settings).
        entropy: weight of the mean row entropy of the soft stacks, nats, over all layers, elements and rows. The
            published code sums instead: its weight times L (G - 1) d, for L layers of equal size, is this one.
        held_out: share of the training data to choose by.
        structure_rate: learning rate of the structure, with the weights' warm-up and cosine; None is the weights' own.
        rest_structure: whether the structure rests in the burn-in, as under the evidence. As published it moves from
            the first step.
        terms: further terms of the loss (`LossTerm`), nats per datum.

    Raises:
        ValueError: settings out of range, a grid that nothing can be chosen from.
    """

    weight_decays: tuple[float, ...] = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    learning_rates: tuple[float, ...] = ()
    normaliser: float = 0.0
    entropy: float = 0.0
    held_out: float = 0.2
    structure_rate: float | None = None
    rest_structure: bool = False
    terms: tuple[LossTerm, ...] = ()
    name: ClassVar[str] = "task"

    def __post_init__(self) -> None:
        decays = self.weight_decays
        if not isinstance(decays, tuple) or not decays:
            raise ValueError(f"weight_decays={shown(decays)}: expected one or more numbers, none negative, in a tuple")
        for decay in decays:
            real("weight_decays", decay, "one or more numbers, none negative", least=0)
        if not isinstance(rates := self.learning_rates, tuple):
            raise ValueError(f"learning_rates={shown(rates)}: expected positive numbers in a tuple")
        for rate in rates:
            positive("learning_rates", rate, "positive numbers in a tuple")
        for name in ("normaliser", "entropy"):
            real(name, getattr(self, name), "a weight of at least 0", least=0)
        if self.structure_rate is not None:
            positive("structure_rate", self.structure_rate)
        share("held_out", self.held_out, "a share of the data, in (0, 1)")
        flag("rest_structure", self.rest_structure)
        check_terms(self.terms)

    def check(self, setting: Setting) -> None:
        """Raise ValueError for a regulariser that no layer offers."""
        check_regularisers(setting.net, {"normaliser": self.normaliser, "entropy": self.entropy})

    def start(self, free: Sequence[str]) -> Penalties:
        """The penalties that the search begins with; `free` names the pathways that break a layer's sharing."""
        return Penalties(normaliser=self.normaliser, entropy=self.entropy)

    def axes(self, free: Sequence[str]) -> list[Axis]:
        """After the weight decay: what to try around the best so far, one axis after the other."""
        return []

    def choose(self, setting: Setting, held_out: HeldOut) -> Penalties:
        """The penalties with the smallest held-out negative log likelihood, found axis by axis."""
        free = [name for name, pathway in named_pathways(setting.net) if pathway.breaks_sharing]

        def decays(best: Penalties) -> list[Penalties]:
            return [replace(best, weight_decay=decay) for decay in self.weight_decays]

        def rates(best: Penalties) -> list[Penalties]:
            return [best, *(replace(best, learning_rate=rate) for rate in self.learning_rates)]

        best = self.start(free)
        for axis in (decays, rates, *self.axes(free)):
            best = held_out.best(axis(best), self.begin, self.held_out)
        return best

    def chosen_settings(self, chosen: Penalties) -> dict[str, Any]:
        """The weight decay and, where there are any, ratios, a slack or a learning rate."""
        return asdict(chosen) | {"normaliser": None, "entropy": None}

    def begin(self, setting: Setting, chosen: Penalties) -> "PenalisedAtWork":
        """Train by the task loss with these penalties."""
        return PenalisedAtWork(self, setting, chosen)


class PenalisedAtWork:
    """A penalised task loss at work on one network; see `Work` for what each method is for."""

    def __init__(self, settings: TaskLoss, setting: Setting, penalties: Penalties) -> None:
        self.settings, self.setting, self.penalties = settings, setting, penalties
        net, plan = setting.net, setting.schedule
        self.pathways = dict(named_pathways(net))
        self.log_precisions = {name: tensor.detach() for name, tensor in starting_log_precisions(net).items()}
        self.share = (penalties.learning_rate or plan.learning_rate) / plan.learning_rate
        self.structure = structure(net)
        self.settling = Settling(structures(net))
        self.burn_in = BurnIn(plan, structured=True)
        # without the evidence there is no prior that a residual would serve
        self.unneeded = [p.parameter for p in self.pathways.values() if p.of_prior_only]

    def further_groups(self) -> list[dict[str, Any]]:
        """The structure, and what the likelihood may learn."""
        plan, groups = self.setting.schedule, []
        if self.structure:
            own = self.settings.structure_rate
            share = self.share if own is None else own / plan.learning_rate
            groups.append({"params": self.structure, "share": share})
        if noise := self.setting.likelihood.hyperparameters():
            groups.append({"params": noise, "share": self.share})
        return groups

    def rate(self, pathway: str) -> float:
        """All pathways learn at the rate that was chosen."""
        return self.share

    def at_rest(self, epoch: int) -> list[nn.Parameter]:
        """Residuals of soft stacks; the structure in the burn-in, where it is to rest there."""
        rests = self.settings.rest_structure and not self.burn_in.over(epoch)
        return [*self.unneeded, *(self.structure if rests else [])]

    def before_epoch(self) -> None:
        """Nothing."""

    def outputs(self, x: Tensor) -> Tensor:
        """Of the network."""
        return self.setting.net(x)

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(-log p(y | f(x)) / batch + penalties, -log p(y | f(x)))."""
        outputs = self.outputs(x)
        nll = -self.setting.likelihood.log_prob(outputs, y)
        loss = nll / len(x) + self.penalty()
        for term in self.settings.terms:
            loss = loss + term(self.setting.net, x, y, outputs)
        return loss, nll

    def penalty(self) -> Tensor | float:
        """½ λ Σ_p r_p ‖θ_p‖² and what else is penalised, nats per datum."""
        weights, terms = self.penalties, []
        if weights.weight_decay:
            ratios = weights.ratios
            squares = sum(ratios.get(n, 1.0) * p.parameter.square().sum() for n, p in self.pathways.items())
            terms.append(0.5 * weights.weight_decay * squares)
        terms += self.further_penalties()
        terms += regularised(self.settling.layers, {"normaliser": weights.normaliser, "entropy": weights.entropy})
        return sum(terms)

    def further_penalties(self) -> list[Tensor]:
        """None but those above."""
        return []

    def after_step(self, epoch: int, step: int) -> None:
        """Nothing."""

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """Nothing to record."""
        return {}

    def follow_network(self) -> None:
        """Nothing is ever taken out."""

    def finish(self) -> None:
        """Nothing."""

    def settle(self, done: LaplacePass) -> None:
        """The precisions that are best for these weights; those that shape a kernel stay what they were in training."""
        self.settling.look()
        if shaping_precisions(self.setting.net):
            return
        steps, hessian = FINAL_STEPS, done.hessian
        near = hessian.near if isinstance(hessian, FunctionSpace | Jackknifed) else None
        if near is not None:
            cheaper = replace(done, hessian=near)
            set_precisions(self.setting, cheaper, self.log_precisions, steps, FINAL_DAMPING, hold_split=True)
            steps = LAST_STEPS
        set_precisions(self.setting, done, self.log_precisions, steps, FINAL_DAMPING, hold_split=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The precisions."""
        return {f"prior.{name}": tensor for name, tensor in self.log_precisions.items()}, {}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """See `state`."""
        for name, tensor in self.log_precisions.items():
            tensor.copy_(tensors[f"prior.{name}"])

    def notes(self, history: list[dict[str, float]]) -> list[str]:
        """Stacks that did not converge."""
        return self.settling.notes()
