"""Networks ranked by their evidence: by how many nats, under which bound, of how many starts; table and file."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Len
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bayesws.evidence.curvature import Curvature
from bayesws.io.files import without_nan, write_whole
from bayesws.io.json_files import Count, Finite, Measured, Seconds, read_json, sealed
from bayesws.io.tables import as_text
from bayesws.training.result import FitResult
from bayesws.training.summaries import SharingRow
from bayesws.trials.by_layer import in_use, of_strength
from bayesws.trials.comparable import check_same_data, check_same_estimator, check_same_meaning, doubt

NARROWEST_NAME = 16  # columns for a network's name
AGAIN = "run bayesws select again"


@dataclass(frozen=True)
class RankedNetwork:
    """One network of a ranking, at its best start.

    Attributes:
        name: as the caller called it.
        log_evidence: nats, summed over the training data; of the best start.
        by_seed: the same of every start.
        seed: of the best start.
        parameters: number of weights.
        sharing: a row per layer, effective parameters by the same curvature as the evidence.
        groups: the known group of every sharing layer by the layer's name, "no group" where it is none.
        seconds: wall time of all its fits and evidences.
        notes: what did not converge in the best start.
        test_nll: negative log likelihood of held-out data at the MAP, nats per datum; None where none were given.
        data: SHA-256 of the training data; None for a DataLoader, and in files of older versions.
        meaning: the `MEANING` that the numbers were computed by; None in files of older versions.
        curvature: that the log evidence was computed with; None in files of older versions.
    """

    name: str
    log_evidence: Finite
    by_seed: list[Measured]
    seed: int
    parameters: Count
    sharing: list[SharingRow]
    groups: dict[str, str]
    seconds: Seconds
    notes: list[str]
    test_nll: float | None = None
    data: str | None = None
    meaning: int | None = None
    curvature: Curvature | None = None

    @property
    def spread(self) -> float:
        """How far apart its starts have come, nats; nan for a single one."""
        known = [value for value in self.by_seed if math.isfinite(value)]
        return max(known) - min(known) if len(known) > 1 else math.nan


@dataclass(frozen=True)
class Ranking:
    """Networks by their log evidence, the best first.

    Attributes:
        rows: sorted by log evidence.
        settings: what was the same for all of them: schedule, curvature of the evidence and what its number bounds.
        fits: the best start of every network by its name; empty after `load`.
    """

    rows: list[RankedNetwork]
    settings: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, FitResult] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse networks whose evidences cannot be subtracted. All were trained by the evidence.

        Raises:
            ValueError: networks that were trained on different data, numbers of different meanings or curvatures.
        """
        named = [(f"network {row.name!r}", row) for row in self.rows]
        check_same_meaning(named)
        check_same_data(named)
        check_same_estimator((name, row.curvature) for name, row in named)

    def __str__(self) -> str:
        """Whether held-out data disagree, the table, what it says, and whether that can be doubted."""
        return self.said(as_text(self.table()))

    def said(self, table: str) -> str:
        """A table of it between what is to be known before and what it comes to."""
        first = [f"note: {told}"] if (told := self.disagreement()) else []
        notes = [f"note: {note}" for note in (self.within_spread, self.doubt) if note]
        return "\n".join([*first, table, self.verdict, *notes])

    @property
    def best(self) -> RankedNetwork:
        """The network with the largest evidence."""
        return self.rows[0]

    @property
    def log_bayes_factors(self) -> dict[str, float]:
        """log p(D | network) - log p(D | best) by name, nats; none is positive."""
        return {row.name: row.log_evidence - self.best.log_evidence for row in self.rows}

    @property
    def probabilities(self) -> dict[str, float]:
        """p(network | D) under equal prior odds, by name: the softmax of the log evidences, as if they were `exact`."""
        return _probabilities(self.log_bayes_factors)

    @property
    def exact(self) -> bool:
        """Whether the numbers are the Laplace evidence itself: of bounds and estimates no probabilities are shown."""
        return all(row.curvature is not None and row.curvature.bound == "exact" for row in self.rows)

    @property
    def starts(self) -> str:
        """Of how many trainings these are the best, in words."""
        networks, counts = len(self.rows), sorted({len(row.by_seed) for row in self.rows})
        of_each = f" of each of {networks} networks" if networks > 1 else ""
        if counts == [1]:
            return f"one start{of_each}: how far apart starts come is not known"
        return f"the best of {' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} starts{of_each}"

    @property
    def verdict(self) -> str:
        """By how many nats the best is favoured over the next, under which bound, and of how many starts: a line."""
        if len(self.rows) == 1:
            return f"{self.best.name} is the only network; {self.starts}"
        bound, lead = self.settings.get("bound", "not recorded"), -self.log_bayes_factors[self.rows[1].name]
        kind = "evidence" if self.exact else "bound" if "lower bound" in bound else "estimate"
        favour = f"{self.best.name} is favoured by {lead:.1f} nats over {self.rows[1].name}"
        return f"{favour} under this {kind} ({bound}); {self.starts}"

    @property
    def within_spread(self) -> str | None:
        """One line where starts of one network lie further apart than the best and another; None where none do."""
        best, factors = self.best, self.log_bayes_factors
        close = {}
        for row in self.rows[1:]:
            widest = max((s for s in (best.spread, row.spread) if not math.isnan(s)), default=0.0)
            if -factors[row.name] < widest:
                close[row.name] = widest
        if not close:
            return None
        names = ", ".join(f"{name} ({-factors[name]:.1f})" for name in close)
        return (
            f"the ranking is within the spread of starts: {best.name} is ahead of {names} by fewer nats than starts of "
            f"one network differ (by up to {max(close.values()):.1f}); take more starts, or longer ones"
        )

    @property
    def doubt(self) -> str | None:
        """One line where nobody can tell whether the networks saw the same data; None where that is known."""
        return doubt(self.rows)

    def table(self) -> Table:
        """Log evidence of every network, less the best's, and its probability if `exact`; held-out NLL if known."""
        columns = {
            "log evidence": [f"{row.log_evidence:.1f}" for row in self.rows],
            "less the best": [f"{factor:.1f}" for factor in self.log_bayes_factors.values()],
            "p": [f"{probability:.2g}" for probability in self.probabilities.values()],
            "test NLL": ["–" if row.test_nll is None else f"{row.test_nll:.3f}" for row in self.rows],
            "starts": [str(len(row.by_seed)) for row in self.rows],
            "weights": [str(row.parameters) for row in self.rows],
            "s": [f"{row.seconds:.0f}" for row in self.rows],
        }
        if all(row.test_nll is None for row in self.rows):
            del columns["test NLL"]
        if not self.exact:
            del columns["p"]
        title = "By evidence, nats summed over the training data"
        caption = self.settings.get("bound")
        table = Table(
            title=title,
            title_justify="left",
            caption=caption and f"({caption})",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("network", min_width=NARROWEST_NAME, overflow="fold")
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for row, numbers in zip(self.rows, zip(*columns.values(), strict=True), strict=True):
            table.add_row(row.name, *numbers)
        return table

    def disagreement(self) -> str | None:
        """One line where held-out data prefer another network than the evidence does; None where they agree.

        Both may be right: the evidence can disagree with generalisation (arXiv 2202.11678).
        """
        known = {row.name: row.test_nll for row in self.rows if row.test_nll is not None}
        if self.best.name not in known or known[self.best.name] <= min(known.values()):
            return None
        other = min(known, key=known.__getitem__)
        return (
            f"held-out data disagree with the evidence: they prefer {other} (test NLL {known[other]:.3f} nats per "
            f"datum) to {self.best.name} ({known[self.best.name]:.3f})"
        )

    def sharing_table(self) -> Table:
        """Group, sharing strength and effective parameters of every layer."""
        table = Table(
            title="What is shared, layer by layer; effective parameters γ",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("network", min_width=NARROWEST_NAME, overflow="fold")
        for name in ("layer", "group"):
            table.add_column(name, overflow="fold")
        for name in ("ρ", "γ"):
            table.add_column(name, justify="right", no_wrap=True)
        for network in self.rows:
            for row in network.sharing:
                group = network.groups.get(row.name, "–")
                # over one element nothing is shared
                strength = "–" if group == "trivial" else of_strength(row.strength)
                table.add_row(network.name, row.name, group, strength, in_use([row]))
        return table

    def save(self, path: str | Path) -> None:
        """Write everything but the fits as JSON, whole or not at all; factors as well, and probabilities if `exact`."""
        text = json.dumps(sealed(without_nan(self.record())), indent=1, allow_nan=False)
        write_whole(Path(path), lambda draft: draft.write_text(text))

    def record(self) -> dict[str, Any]:
        """What `save` writes."""
        return {
            "settings": self.settings,
            "log_bayes_factors": self.log_bayes_factors,
            **({"probabilities": self.probabilities} if self.exact else {}),
            "networks": [asdict(row) for row in self.rows],
        }

    @classmethod
    def load(cls, path: str | Path) -> "Ranking":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing or is not a ranking, or whose networks cannot be compared.
        """
        record = RankingFile.read(path)
        return cls(record.networks, record.settings)


@dataclass(frozen=True)
class LayerRanking:
    """Which group every layer wants, the other layers being as they are in the best network that was found.

    Attributes:
        chosen: the group of every layer in that network.
        log_evidences: for every layer, by group: log evidence of the network with this group in this layer,
            nats, summed over the training data.
        ranking: all networks that were tried, each named by its layers' groups; its best one is the chosen one.
    """

    chosen: tuple[str, ...]
    log_evidences: list[dict[str, float]]
    ranking: Ranking

    def __str__(self) -> str:
        """Whether held-out data disagree, the table of the layers, and all about the networks."""
        return self.ranking.said(f"{as_text(self.table())}\n{as_text(self.ranking.table())}")

    @property
    def log_bayes_factors(self) -> list[dict[str, float]]:
        """For every layer, by group: log evidence less that of the chosen network, nats; none is positive."""
        best = self.ranking.best.log_evidence
        return [{name: evidence - best for name, evidence in layer.items()} for layer in self.log_evidences]

    @property
    def probabilities(self) -> list[dict[str, float]]:
        """For every layer: p(group | D, other layers as chosen) under equal prior odds; see `Ranking.exact`."""
        return [_probabilities(factors) for factors in self.log_bayes_factors]

    def table(self) -> Table:
        """Log evidence of every layer's groups less that of the chosen one, the other layers as chosen."""
        table = Table(
            title="Log evidence less the chosen network's, by layer, nats",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            caption=(bound := self.ranking.settings.get("bound")) and f"({bound})",
            caption_justify="left",
        )
        table.add_column("layer", justify="right")
        for name in self.log_evidences[0]:
            table.add_column(name, justify="right", no_wrap=True)
        for place, (factors, chosen) in enumerate(zip(self.log_bayes_factors, self.chosen, strict=True), 1):
            cells = (Text("chosen", style="bold") if n == chosen else f"{f:.1f}" for n, f in factors.items())
            table.add_row(str(place), *cells)
        return table

    def save(self, path: str | Path) -> None:
        """Write what `Ranking.save` does, and beside it the layers: JSON, whole or not at all."""
        layers = {"chosen": self.chosen, "log_evidences": self.log_evidences}
        layers |= {"probabilities": self.probabilities} if self.ranking.exact else {}
        record = sealed(without_nan(self.ranking.record() | {"layers": layers}))
        text = json.dumps(record, indent=1, allow_nan=False)
        write_whole(Path(path), lambda draft: draft.write_text(text))

    @classmethod
    def load(cls, path: str | Path) -> "LayerRanking":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing, is not a ranking, or is one of whole networks alone.
        """
        record = RankingFile.read(path)
        if record.layers is None:
            raise ValueError(f"{path} ranks whole networks: expected a ranking by layers; use Ranking.load")
        found = cls(record.layers.chosen, record.layers.log_evidences, Ranking(record.networks, record.settings))
        if not found.chosen or len(found.chosen) != len(found.log_evidences):
            raise ValueError(f"{path} is damaged: layers without a group each; {AGAIN}")
        return found


@dataclass(frozen=True)
class RankedLayers:
    """What ranking.json holds of its layers: see `LayerRanking`; a summary leaves the probabilities out."""

    chosen: tuple[str, ...]
    log_evidences: list[dict[str, Measured]]
    probabilities: list[dict[str, Measured]] = field(default_factory=list)


@dataclass(frozen=True)
class RankingFile:
    """What ranking.json holds, or its summary."""

    settings: dict[str, Any]
    networks: Annotated[list[RankedNetwork], Len(1)]
    log_bayes_factors: dict[str, Measured] = field(default_factory=dict)
    probabilities: dict[str, Measured] = field(default_factory=dict)
    layers: RankedLayers | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read one, whole networks or by layers."""
        return read_json(path, cls, AGAIN)


def _probabilities(factors: dict[str, float]) -> dict[str, float]:
    odds = {name: math.exp(factor) for name, factor in factors.items()}
    return {name: odd / sum(odds.values()) for name, odd in odds.items()}
