"""Plain numbers of a fit: its evidence, what its layers share, what their inputs proposed, its starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bayesws.evidence.curvature import Curvature
from bayesws.evidence.objective import Evidence
from bayesws.io.json_files import Count, Finite, Fraction, Measured, Seconds
from bayesws.sharing.candidates import Candidates

BIASES = ("bias", "offset")  # last part of the name of a pathway that is none of a branch's weights


@dataclass(frozen=True)
class PathwaySummary:
    """One pathway's part in the evidence as plain numbers: see `PathwayEvidence`."""

    scatter: float
    occam: float | None
    effective: float
    parameters: Count
    log_precision: float


@dataclass(frozen=True)
class EvidenceSummary:
    """The evidence of a fit as plain numbers, nats summed over the data: see `Evidence`."""

    log_evidence: Finite
    data_fit: Finite
    scatter: Finite
    occam: Finite
    by_pathway: dict[str, PathwaySummary]
    examples: Count
    curvature: Curvature

    @classmethod
    def of(cls, evidence: Evidence) -> "EvidenceSummary":
        """The numbers of an `Evidence`."""
        pathways = {
            name: PathwaySummary(
                float(p.scatter.detach()),
                None if p.occam is None else float(p.occam.detach()),
                float(p.effective.detach()),
                p.parameters,
                float(p.log_precision.detach()),
            )
            for name, p in evidence.by_pathway.items()
        }
        return cls(
            float(evidence),
            float(evidence.data_fit.detach()),
            float(evidence.scatter.detach()),
            float(evidence.occam.detach()),
            pathways,
            evidence.examples,
            evidence.curvature,
        )


@dataclass(frozen=True)
class SharingRow:
    """How much one layer shares, and what it uses of its pathways.

    Attributes:
        name: the layer's path in the network.
        strength: ρ in [0, 1], the correlation of corresponding weights of two copies under the fitted prior, as the
            layer defines it (see `WeightSharing.sharing_strength` for soft stacks, and `Branches`); nan for a layer
            without copies that share, such as a plain linear one.
        effective: γ by pathway, effective parameters.
        parameters: number of parameters by pathway.
        log_precisions: log δ by pathway.
    """

    name: str
    strength: Measured
    effective: dict[str, Measured]
    parameters: dict[str, Count]
    log_precisions: dict[str, Measured]

    @property
    def branches(self) -> list[str]:
        """The names of the modules that the layer is a sum of, see `Branches`; none where it is one module.

        >>> SharingRow("0", 0.9, {}, {"conv.weight": 18, "conv.bias": 2, "fc.0.weight": 1000}, {}).branches
        ['conv', 'fc']
        """
        return list(dict.fromkeys(name.partition(".")[0] for name in self.parameters if "." in name))

    @property
    def shares(self) -> dict[str, float]:
        """By branch (of a sharing layer by pathway) its share in what the layer uses of its branches, in [0, 1].

        A branch uses γ / P of its P weights, biases left out; the shares are these, over their sum. nan where nothing
        is used. Reference: arXiv 2310.06131, relative effective dimensions.

        >>> effective, parameters = {"conv.weight": 9.0, "fc.weight": 10.0}, {"conv.weight": 18, "fc.weight": 1000}
        >>> SharingRow("0", 0.9, effective, parameters, {}).shares
        {'conv': 0.9803921568627451, 'fc': 0.0196078431372549}
        """
        used: dict[str, float] = {}
        sizes: dict[str, int] = {}
        for name, gamma in self.effective.items():
            branch = name.partition(".")[0]
            if name.rpartition(".")[2] not in BIASES:
                used[branch] = used.get(branch, 0.0) + gamma
                sizes[branch] = sizes.get(branch, 0) + self.parameters[name]
        relative = {branch: gamma / sizes[branch] for branch, gamma in used.items()}
        total = sum(relative.values())
        return {branch: value / total if total else math.nan for branch, value in relative.items()}


@dataclass(frozen=True)
class Proposal:
    """What the moments of one layer's input proposed before the fit: see `sharing.candidates`.

    Attributes:
        name: the layer's path in the network.
        group: the known group that the input is symmetric under, None where it has no name.
        elements: how many elements it has.
        misfit: the largest of an element, relative.
        p_value: of the input being symmetric under it.
    """

    name: str
    group: str | None
    elements: Count
    misfit: Measured
    p_value: Fraction

    @classmethod
    def of(cls, name: str, candidates: Candidates) -> "Proposal":
        """The plain numbers of what was found."""
        group = candidates.group
        return cls(name, group.name, len(group.permutations), group.misfit, group.p_value)


@dataclass(frozen=True)
class Start:
    """What one start of a fit has come to: see `training.starts`, and `training.best_start` for what chooses.

    Attributes:
        number: from 0, the network as given.
        what: what it is, in words.
        log_evidence: that chooses, nats summed over the training data; None where held-out data choose.
        held_out_nll: negative log likelihood of the held-out data, nats per datum; None where the evidence chooses.
        curvature: of that evidence, one for all starts.
        seconds: wall time of its training and its score; None where an earlier call took it and did not tell.
        kept: whether the fit is this one.
        saturated: whether its evidence is too high, by too few sampled rows: see `Evidence.saturated`.
    """

    number: Count
    what: str
    log_evidence: Finite | None
    held_out_nll: float | None
    curvature: Curvature | None
    seconds: Seconds | None
    kept: bool = False
    saturated: bool = False

    @property
    def score(self) -> str:
        """What chooses, in words."""
        if self.log_evidence is not None:
            return f"log evidence {self.log_evidence:.1f} nats" + ", too high" * self.saturated
        return f"held-out NLL {self.held_out_nll:.3f} nats per datum"


def best_of(starts: Sequence[Start]) -> Start:
    """The start with the highest log evidence, or the smallest held-out loss; the first of several that are equal.

    One whose evidence is too high is passed over for any other.
    """

    def score(start: Start) -> tuple[bool, float]:
        loss = start.held_out_nll or 0.0
        return not start.saturated, -loss if start.log_evidence is None else start.log_evidence

    return max(starts, key=score)
