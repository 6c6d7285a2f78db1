"""The starts of one fit: the network as given, and the same network with other weights and other stacks."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from bayesws.evidence.batches import digest_of
from bayesws.evidence.nesting import nested
from bayesws.layers.contract import named_pathways, structure
from bayesws.layers.start import StackStart, has_soft_stack, stack_starts, start_at_moments, start_at_random
from bayesws.training.objectives.objective import Setting
from bayesws.training.summaries import Proposal

SEED_DIGITS = 15  # hexadecimal ones, of a digest: 60 bits


@dataclass(frozen=True)
class Begun:
    """A network where its training starts.

    Attributes:
        number: of the start, from 0.
        what: what it is, in words.
        setting: with the network.
        proposals: what the moments of its layers' inputs proposed; empty where none were looked at.
    """

    number: int
    what: str
    setting: Setting
    proposals: tuple[Proposal, ...] = ()


class Starts:
    """The starts of one fit, `schedule.starts` of them; each is the same however many there are.

    Start 0 is the network as given, with its soft stacks as `schedule.start` says. In every other all trained weights
    are drawn anew, by the modules' own `reset_parameters()` under torch's seed; what is frozen, precisions, structure
    and noise stay as given. Soft stacks that are trained take turns: as `schedule.start` says, then one after the other
    what `layers.start.stack_starts` names: the groups that the moments propose, and the known ones.

    A start that shares may end where sharing looks good enough, though a freer network has the higher evidence. So
    where pathways are nested every second round of these is apart: free and shared weights start at equal precisions.

    Args:
        setting: of the fit; start 0 is its network, changed in place.
        shares: whether the objective starts networks shared, so that being apart is something else.

    Raises:
        ValueError: a trained weight that no reset_parameters reaches, where there is more than one start.
    """

    def __init__(self, setting: Setting, shares: bool = False) -> None:
        self.setting = setting
        self._apart_too = shares and bool(nested(dict(named_pathways(setting.net))))
        self._stacks: list[StackStart] | None = None
        if len(self) > 1:
            self._given = copy.deepcopy((setting.net, setting.likelihood))
            with self.own_draws(1):
                redraw(copy.deepcopy(setting.net))  # so that what cannot be is told before anything is trained

    def __len__(self) -> int:
        return self.setting.schedule.starts

    def begun(self, number: int) -> Begun:
        """A start; of number 0 only once, as it is changed in place."""
        setting, seed = self.setting, self.setting.seed
        if number == 0:
            return self._with_stacks(0, "as given", setting, None, seed)
        net, likelihood = copy.deepcopy(self._given)
        turns = [None, *self._stack_starts()]
        round_of, place = divmod(number, len(turns))
        apart = self._apart_too and round_of % 2 == 1
        what = "weights drawn anew" + ", apart" * apart
        setting = replace(setting, net=net, likelihood=likelihood, apart=apart)
        with self.own_draws(number), _frozen_as_given(net):
            redraw(net)
            return self._with_stacks(number, what, setting, turns[place], _seed_of(seed, number))

    @contextmanager
    def own_draws(self, number: int) -> Iterator[None]:
        """Torch's generators at this start's own seed, left as they were; those of start 0 are the caller's."""
        if number == 0:
            yield
            return
        place = next(self.setting.net.parameters()).device
        seed = _seed_of(self.setting.seed, number)
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if place.type == "cuda":
                with torch.cuda.device(place):
                    torch.cuda.manual_seed(seed)
            yield

    def _stack_starts(self) -> list[StackStart]:
        if self._stacks is None:
            net = self._given[0]
            with self.own_draws(1):  # a loader may draw its order
                found = stack_starts(net, self.setting.data.inputs()) if has_soft_stack(net) and structure(net) else []
            looked_at = self.setting.schedule.start == "moments"
            self._stacks = [stack for stack in found if not (looked_at and stack.is_first_choice)]
        return self._stacks

    @staticmethod
    def _with_stacks(number: int, what: str, setting: Setting, turn: StackStart | None, seed: int) -> Begun:
        """Start the soft stacks: at a turn's groups, or as the schedule says."""
        asked = setting.schedule.start
        if turn is not None or asked == "moments":
            found = start_at_moments(setting.net, setting.data.inputs(), at=None if turn is None else turn.at)
            what = f"{what}, stacks at {'moments' if turn is None else turn.what}"
            return Begun(number, what, setting, tuple(Proposal.of(*both) for both in found.items()))
        if asked == "random":
            start_at_random(setting.net, seed)
            what = f"{what}, stacks at random"
        return Begun(number, what, setting)


@torch.no_grad()
def redraw(net: nn.Module) -> None:
    """Draw all trained weights anew, in place, by `reset_parameters()` of the modules, inner ones before outer ones.

    Raises:
        ValueError: a trained weight that none of them reaches.
    """
    weights = [p.parameter for _, p in named_pathways(net) if p.parameter.requires_grad]
    with _frozen_as_given(net):
        for weight in weights:
            weight.fill_(torch.nan)  # what is drawn anew is a number
        for module in reversed(list(net.modules())):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset) and any(p.requires_grad for p in module.parameters()):
                reset()
    missed = {id(weight) for weight in weights if weight.isnan().any()}
    if name := next((name for name, p in net.named_parameters() if id(p) in missed), None):
        raise ValueError(
            f"starts: no reset_parameters() draws parameter {name!r} anew: expected one of its module, or a module "
            "around it; write it, or freeze the parameter (requires_grad_(False))"
        )


@contextmanager
def _frozen_as_given(net: nn.Module) -> Iterator[None]:
    """Frozen parameters are as before in the end."""
    before = [(p, p.detach().clone()) for p in net.parameters() if not p.requires_grad]
    yield
    with torch.no_grad():
        for parameter, value in before:
            parameter.copy_(value)


def _seed_of(seed: int, number: int) -> int:
    """Of a start: no two (seed, number) share their draws."""
    return int(digest_of(("start", seed, number), [])[:SEED_DIGITS], 16)
