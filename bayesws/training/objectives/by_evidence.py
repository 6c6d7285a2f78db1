"""The evidence as the objective: weights at their MAP, and precisions, noise and structure by the log evidence."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayesws.evidence.curvature import Curvature, curvature_named
from bayesws.evidence.gradient import WAYS, gradient_in
from bayesws.evidence.nesting import nested, outermost_first, rebalance, variance_share
from bayesws.evidence.objective import Evidence, LaplacePass, assemble, laplace_pass
from bayesws.evidence.precision import ascend_precisions, update_precisions
from bayesws.io.arguments import LARGEST_SEED, choice, flag, positive, real, share, whole
from bayesws.layers.contract import named_pathways, starting_log_precisions, structure, structures
from bayesws.training.burn_in import BurnIn
from bayesws.training.directions import Directions
from bayesws.training.objectives.objective import HeldOut, LossTerm, Setting, check_terms
from bayesws.training.optimiser import forget, optimiser_state, restore_optimiser
from bayesws.training.pruning import Pruning
from bayesws.training.schedule import steps_due
from bayesws.training.settled import epochs_to_settle
from bayesws.training.structure import Settling

PRIOR_STEP = 10.0  # a step may be at most this many prior standard deviations per unit of the learning rate
FEW_STEPS = 3  # on the hyperparameters: with fewer nothing can be said of their convergence
SMALL_GAIN = 1e-3  # nats per datum: the next step on the precisions may wait twice as long
LONGEST_WAIT = 4  # times `every`
TOO_FEW_ROWS = (
    "the data determine more parameters than sampled rows can hold: steps on the evidence took Kronecker factors of "
    "one sampled column a datum"
)
UNSETTLED = 0.05  # relative change of the log evidence in the last hyperparameter step that is worth a note


@dataclass(frozen=True, kw_only=True)
class ByEvidence:
    """Weights minimise -log p(D | θ) + ½ θᵀ Λ θ; one Laplace pass every few epochs sets the hyperparameters.

    Where no structure is learned, a pass sets Λ, by MacKay's fixed point, and the noise. Where layers have structure, a
    step follows the whole gradient of the log evidence in structure and noise, with MacKay's step on the precisions.

    Attributes:
        curvature: of the steps, a `Curvature` or its name; its samples and its subset are drawn anew at every step.
            None takes the one that `fit` reports the evidence with.
        fixed_point_steps: MacKay steps on the precisions for one curvature pass.
        damping: of a MacKay step, in (0, 1].
        structure_rate: Adam's learning rate for structure and noise.
        structure_way: how their gradient is taken, "once", "twice" (constant memory) or "local"; see
            `evidence.gradient`.
        terms: further terms of the weights' loss (`LossTerm`), nats per datum.
        shared_start: a free pathway that may grow from the start fits first and hides the symmetry. So of a sum R w + v
            the log precision of v starts at least so far above that of w: ρ ≥ 0.98 of a kernel at 4. Where outputs of v
            are made of more inputs (`Within.wider`: a dense map beside a convolution), the logarithm of how many
            times as many is added. None starts at the declared precisions; of several starts some are apart
            (`training.starts`), at equal ones.
        prune: a branch (see `Branches`) that has fewer effective parameters than this at three steps in a row, all its
            pathways together, is taken out of the network, which trains faster without it (see `training.pruning` for
            what that costs). None takes nothing out.
        keep_sizes: whether layers whose scale the network does not see, such as those before a normalisation, keep the
            size that they start with, the prior turning them alone (`training.directions`). Where few data are fitted
            to the last one their weights shrink otherwise, and steps become larger than they are. Not at high rates,
            such as the default one, 0.03, nor over few epochs of many data: there weights that grow do better.

    Raises:
        ValueError: settings out of range, an unknown way.

    References: MacKay (1992), "Bayesian interpolation"; arXiv 2310.06131.
    """

    curvature: Curvature | str | None = None
    fixed_point_steps: int = 4
    damping: float = 0.5
    structure_rate: float = 0.1
    structure_way: str = "once"
    terms: tuple[LossTerm, ...] = ()
    shared_start: float | None = 4.0
    prune: float | None = None
    keep_sizes: bool = False
    name: ClassVar[str] = "evidence"

    def __post_init__(self) -> None:
        if self.curvature is not None:
            curvature_named(self.curvature)
        whole("fixed_point_steps", self.fixed_point_steps)
        share("damping", self.damping, "a number in (0, 1]", one=True)
        positive("structure_rate", self.structure_rate)
        if self.shared_start is not None:
            real("shared_start", self.shared_start)
        if self.prune is not None:
            positive("prune", self.prune)
        flag("keep_sizes", self.keep_sizes)
        check_terms(self.terms)
        choice("structure_way", self.structure_way, WAYS)

    def check(self, setting: Setting) -> None:
        """Every network will do."""

    def choose(self, setting: Setting, held_out: HeldOut) -> None:
        """Nothing: the evidence sets everything while it trains."""

    def chosen_settings(self, chosen: None) -> dict[str, Any]:
        """None."""
        return {}

    def begin(self, setting: Setting, chosen: None = None) -> "EvidenceAtWork":
        """Start where the layers' declared precisions are, and shared."""
        return EvidenceAtWork(self, setting)


class EvidenceAtWork:
    """The evidence at work on one network; see `Work` for what each method is for."""

    def __init__(self, settings: ByEvidence, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        own = settings.curvature
        self.curvature = setting.curvature if own is None else curvature_named(own)
        net, likelihood, plan = setting.net, setting.likelihood, setting.schedule
        self.pathways = dict(named_pathways(net))
        self.due = steps_due(plan, len(setting.data))
        self.draws = 0  # of curvatures so far
        self.saturated = False  # whether sampled rows were too few
        self.settling = Settling(structures(net))
        self.pruning = Pruning(settings.prune)
        self.directions = Directions(net, setting.few if settings.keep_sizes else None)
        self.effective: dict[str, float] = {}  # γ by pathway, of this epoch's last step
        self.record: dict[str, float] = {}  # of this epoch's last step on the hyperparameters
        self.log_precisions = starting_log_precisions(net)
        noise, logits = likelihood.hyperparameters(), structure(net)
        self.hyper_optimiser: torch.optim.Optimizer | None = None
        if self.settling.layers or (noise and not likelihood.settles):
            for tensor in self.log_precisions.values():
                tensor.requires_grad_()
            learned = {"params": [*noise, *logits]}  # none where all structure is frozen
            self.hyper_optimiser = torch.optim.Adam([learned], lr=settings.structure_rate)
        else:
            self.log_precisions = {name: tensor.detach() for name, tensor in self.log_precisions.items()}
        self.burn_in = BurnIn(plan, structured=self.hyper_optimiser is not None)
        self.wait = plan.wait  # epochs between the last step on the precisions and the next
        self.next_step = 0  # the first epoch that it may be in
        self.descended: list[Tensor] = []  # what the weights descended on, by step of this epoch
        self._start_nested()
        self.deltas = self._deltas()

    @torch.no_grad()
    def _start_nested(self) -> None:
        """Shared, or apart."""
        logs, within = self.log_precisions, nested(self.pathways)
        for inner in reversed(outermost_first(self.pathways, within)):
            place = self.pathways[inner].within
            if inner not in within or place is None:
                continue
            if self.setting.apart:
                logs[place.outer].copy_(logs[inner])
            elif self.settings.shared_start is not None:
                logs[place.outer].clamp_(min=logs[inner] + self.settings.shared_start + math.log(place.wider))

    def further_groups(self) -> list[dict[str, Any]]:
        """None: only weights descend on the loss."""
        return []

    def rate(self, pathway: str) -> float:
        """A pathway that its precision keeps small takes small steps, too.

        A nested one the square root of its share of the sum's prior variance: the whitened step of the sum.
        """
        share = variance_share(pathway, self.deltas, nested(self.pathways))
        return min(math.sqrt(share), PRIOR_STEP / math.sqrt(self.deltas[pathway]))

    def at_rest(self, epoch: int) -> list[nn.Parameter]:
        """Nothing rests."""
        return []

    def before_epoch(self) -> None:
        """The precisions of this epoch's first steps."""
        self.deltas, self.record, self.effective, self.descended = self._deltas(), {}, {}, []

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(-log p(y | f(x)) / batch + ½ θᵀ Λ θ / N, -log p(y | f(x)))."""
        net, data = self.setting.net, self.setting.data
        outputs = net(x)
        nll = -self.setting.likelihood.log_prob(outputs, y)
        loss = nll / len(x)
        squares = {name: p.parameter.square().sum() for name, p in self.pathways.items()}
        loss = loss + self.directions.pull(self.deltas, squares) * (0.5 / len(data))
        for term in self.settings.terms:
            loss = loss + term(net, x, y, outputs)
        self.descended.append(loss.detach())
        return loss, nll

    def after_step(self, epoch: int, step: int) -> None:
        """A step on the structure, where one is due."""
        if self.hyper_optimiser is not None and self.burn_in.over(epoch) and step in self.due:
            self.record = self._structure_step(self.hyper_optimiser)
            self.deltas = self._deltas()

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """A step on the precisions, where one is due and no structure is learned; never after the last epoch."""
        self.directions.keep_sizes(self.pathways, self.log_precisions)
        self.burn_in.look(epoch, float(torch.stack(self.descended).mean()))
        due = self.hyper_optimiser is None and self.burn_in.over(epoch) and epoch >= self.next_step
        if due and epoch != self.setting.schedule.epochs:
            self.record = self._precision_step()
            self.next_step = epoch + self.wait
        if self.effective and self.pruning.look(self.setting.net, self.effective, epoch):
            self.follow_network()
        return self.record

    def follow_network(self) -> None:
        """Leave out what was taken out of the network."""
        net = self.setting.net
        self.pathways = dict(named_pathways(net))
        self.log_precisions = {name: self.log_precisions[name] for name in self.pathways}
        self.settling.only(structures(net))
        self.directions.only(self.pathways)
        if self.hyper_optimiser is not None:
            forget(self.hyper_optimiser, [*self.setting.likelihood.hyperparameters(), *structure(net)])

    def finish(self) -> None:
        """Nested pathways take their shares of their sum, as the last precisions have them: the function stays."""
        rebalance(self.pathways, self.log_precisions)

    def settle(self, done: LaplacePass) -> None:
        """The precisions are those that the weights were trained with; only whether the structure settled is seen."""
        self.settling.look()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Precisions, the hyperparameters' optimiser, and how many curvatures were drawn."""
        tensors = {f"prior.{name}": tensor for name, tensor in self.log_precisions.items()}
        if self.hyper_optimiser is not None:
            tensors |= optimiser_state("hyper", self.hyper_optimiser)
        return tensors, {
            "draws": self.draws,
            "saturated": self.saturated,
            "settling": self.settling.state(),
            "burn_in": self.burn_in.state(),
            "steps": [self.wait, self.next_step],
            "pruning": self.pruning.state(),
            "squares": self.directions.squares,
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """See `state`."""
        for name, tensor in self.log_precisions.items():
            tensor.copy_(tensors[f"prior.{name}"])
        if self.hyper_optimiser is not None:
            restore_optimiser("hyper", self.hyper_optimiser, tensors)
        self.draws, self.saturated = values["draws"], values["saturated"]
        self.settling.restore(values["settling"])
        self.burn_in.restore(values["burn_in"])
        self.wait, self.next_step = values["steps"]
        self.pruning.restore(values.get("pruning", self.pruning.state()))  # earlier versions took nothing out
        self.directions.squares = values.get("squares", self.directions.squares)

    def notes(self, history: list[dict[str, float]]) -> list[str]:
        """Stacks that did not converge, structure and evidence that still moved."""
        notes = [*self.settling.notes(), *[TOO_FEW_ROWS] * self.saturated, *self.pruning.notes()]
        records = [r["log_evidence"] for r in history if "log_evidence" in r]
        if len(records) < FEW_STEPS:
            notes.append(
                f"only {len(records)} steps on the hyperparameters were taken: train for more epochs, or lower every="
            )
        elif abs(records[-1] - records[-2]) > UNSETTLED * abs(records[-1]):
            more, in_all = epochs_to_settle(history)
            if more or self.curvature == self.curvature.exact():  # else it was the draws that moved it
                longer = f"about {more} more epochs ({in_all} in all)" if more else "more epochs"
                notes.append(
                    f"the log evidence still moved from {records[-2]:.1f} to {records[-1]:.1f} nats in the last step "
                    f"on the hyperparameters: train for {longer}"
                )
        return notes

    def _deltas(self) -> dict[str, float]:
        """δ by pathway."""
        return {name: math.exp(float(t.detach())) for name, t in self.log_precisions.items()}

    def _drawn(self) -> Curvature:
        """The curvature with draws of its own for this step."""
        self.draws += 1
        curvature = Curvature("kron", samples=1) if self.saturated else self.curvature
        return replace(curvature, seed=(self.curvature.seed + self.draws) % LARGEST_SEED)

    def _precision_step(self) -> dict[str, float]:
        """MacKay's steps on one pass; where they gain little, the next pass waits longer.

        Where sampled rows are too few (`Evidence.saturated`), this and all later passes take Kronecker factors.
        """
        rebalance(self.pathways, self.log_precisions)
        before, after = self._step_on_precisions()
        if after.saturated:
            self.saturated = True
            before, after = self._step_on_precisions()
        gain, every = float(after) - float(before), self.setting.schedule.wait
        self.wait = min(2 * self.wait, LONGEST_WAIT * every) if gain < SMALL_GAIN * after.examples else every
        return self._told(after)

    @torch.no_grad()
    def _step_on_precisions(self) -> tuple[Evidence, Evidence]:
        """MacKay's steps on one pass, in place: the evidence before them and after them."""
        setting = self.setting
        done = laplace_pass(setting.net, setting.data, setting.likelihood, self._drawn(), check=False)
        before = assemble(setting.net, done, self.log_precisions)
        set_precisions(setting, done, self.log_precisions, self.settings.fixed_point_steps, self.settings.damping)
        return before, assemble(setting.net, done, self.log_precisions)

    def _structure_step(self, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """One step on all hyperparameters with the whole gradient of the log evidence; MacKay's on the precisions.

        Data fit and Occam factor are added before Adam normalises: each alone would collapse the network.
        """
        setting, others = self.setting, [p for group in optimiser.param_groups for p in group["params"]]
        rebalance(self.pathways, self.log_precisions)
        precisions = list({id(t): t for t in self.log_precisions.values()}.values())
        evidence, gradients = gradient_in(
            setting.net,
            setting.data,
            setting.likelihood,
            self._drawn(),
            self.log_precisions,
            [*precisions, *others],
            self.settings.structure_way,
        )
        for parameter, gradient in zip(others, gradients[len(precisions) :], strict=True):
            parameter.grad = -gradient / evidence.examples
        self.settling.before_step()
        optimiser.step()
        ascend_precisions(setting.net, self.log_precisions, precisions, gradients[: len(precisions)])
        rebalance(self.pathways, self.log_precisions)
        self.settling.after_step()
        return self._told(evidence)

    def _told(self, evidence: Evidence) -> dict[str, float]:
        """The record of a step; and γ is remembered."""
        self.effective = {name: float(p.effective.detach()) for name, p in evidence.by_pathway.items()}
        return terms_of(evidence)


def set_precisions(
    setting: Setting,
    done: LaplacePass,
    log_precisions: dict[str, Tensor],
    steps: int,
    damping: float,
    hold_split: bool = False,
) -> None:
    """MacKay's fixed point on the precisions, in place, then the noise's, where the likelihood has one."""
    update_precisions(setting.net, done.hessian, log_precisions, steps, damping, hold_split=hold_split)
    likelihood = setting.likelihood
    if likelihood.settles and likelihood.hyperparameters():
        effective = float(sum(done.hessian.effective(log_precisions).values()))
        likelihood.settle(done.data_fit, done.examples * done.outputs, effective)


def terms_of(evidence: Evidence) -> dict[str, float]:
    """The evidence and its three terms as plain numbers, nats."""
    parts = {
        "log_evidence": evidence.total,
        "data_fit": evidence.data_fit,
        "scatter": evidence.scatter,
        "occam": evidence.occam,
    }
    return {name: float(value.detach()) for name, value in parts.items()}
