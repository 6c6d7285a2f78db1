"""What the files of a run hold that only a report reads: strength.json and study.json."""

from dataclasses import dataclass, field
from typing import Any

from bayesws.analysis.decomposition import OrbitDecomposition
from bayesws.analysis.equivariance import EquivarianceError
from bayesws.analysis.strength import LayerStrength
from bayesws.io.json_files import Count, Measured
from bayesws.training.result import Proposal, Start
from bayesws.trials.records import Trial


@dataclass(frozen=True)
class Explained:
    """An `OrbitDecomposition` of a layer, with its orbits by size in place of every channel's partner."""

    explained: Measured
    interval: tuple[Measured, Measured]
    evidence: Measured
    chance: Measured
    compared: Count
    orbits: dict[str, Count]

    def decomposition(self, transform: str) -> OrbitDecomposition:
        """As tables know it."""
        return OrbitDecomposition(
            self.explained, self.interval, self.evidence, self.chance, transform, self.compared, ()
        )


@dataclass(frozen=True)
class Posterior:
    """A `SharingStrength` without its samples."""

    layers: list[LayerStrength]
    method: str
    settings: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class StrengthFile:
    """What strength.json holds; by transform and layer, null for a layer in which nothing was compared."""

    model: str
    data: str
    images: Count
    errors: dict[str, dict[str, EquivarianceError]]
    versions: dict[str, str]
    command: list[str]
    explained: dict[str, dict[str, Explained | None]] = field(default_factory=dict)
    best: dict[str, str | None] = field(default_factory=dict)
    sharing: Posterior | None = None
    notes: list[str] = field(default_factory=list)
    trusted: bool | None = None


@dataclass(frozen=True)
class FoundGroup:
    """What a layer's stack has become: see `Identified`."""

    name: str | None
    reason: str
    closure_error: Measured
    entropy: Measured


@dataclass(frozen=True, kw_only=True)
class StudyTrial(Trial):
    """A trial of a study with its settings, and what `TrialSpec.run` gives beside it."""

    settings: dict[str, Any]
    stack_parameters: Count
    groups: dict[str, FoundGroup]
    version: str = ""
    test_data: str = ""
    parameters: Count = 0
    start: list[Proposal] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    history: list[dict[str, Measured]] = field(default_factory=list)


@dataclass(frozen=True)
class StudyFile:
    """What study.json holds."""

    trials: list[StudyTrial]
    command: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
