"""Candidates ranked by their evidence: Bayes factors, probabilities, table and file."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from bayesws.files import write_whole
from bayesws.result import FitResult, SharingRow


@dataclass(frozen=True)
class Candidate:
    """One network of a ranking, at its best start.

    Attributes:
        name: as the caller called it.
        log_evidence: nats, summed over the training data; of the best start.
        by_seed: the same of every start.
        seed: of the best start.
        parameters: number of weights.
        sharing: a row per weight-sharing layer, effective parameters by the same curvature as the evidence.
        groups: the known group of every sharing layer by the layer's name, "no group" where it is none.
        seconds: wall time of all its fits and evidences.
        notes: what did not converge in the best start.
    """

    name: str
    log_evidence: float
    by_seed: list[float]
    seed: int
    parameters: int
    sharing: list[SharingRow]
    groups: dict[str, str]
    seconds: float
    notes: list[str]


@dataclass(frozen=True)
class Ranking:
    """Candidates by their log evidence, the best first.

    Attributes:
        rows: sorted by log evidence.
        settings: what was the same for all of them: schedule, curvature of the evidence and what its number bounds.
        fits: the best start of every candidate by its name; empty after `load`.
    """

    rows: list[Candidate]
    settings: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, FitResult] = field(default_factory=dict, repr=False, compare=False)

    @property
    def best(self) -> Candidate:
        """The candidate with the largest evidence."""
        return self.rows[0]

    @property
    def log_bayes_factors(self) -> dict[str, float]:
        """log p(D | candidate) - log p(D | best) by name, nats; none is positive."""
        return {row.name: row.log_evidence - self.best.log_evidence for row in self.rows}

    @property
    def probabilities(self) -> dict[str, float]:
        """p(candidate | D) under equal prior odds, by name: the softmax of the log evidences."""
        return _probabilities(self.log_bayes_factors)

    def table(self) -> Table:
        """Log evidence, log Bayes factor against the best and probability of every candidate."""
        title = "By evidence, nats summed over the training data"
        caption = self.settings.get("bound")
        table = Table(title=title, title_justify="left", caption=caption and f"({caption})", caption_justify="left")
        table.add_column("candidate")
        for name in ("log evidence", "log Bayes factor", "probability", "of starts", "parameters", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        factors, probabilities = self.log_bayes_factors, self.probabilities
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.log_evidence:.1f}",
                f"{factors[row.name]:.1f}",
                f"{probabilities[row.name]:.3g}",
                str(len(row.by_seed)),
                str(row.parameters),
                f"{row.seconds:.0f}",
            )
        return table

    def sharing_table(self) -> Table:
        """Group, sharing strength and effective parameters of every weight-sharing layer."""
        table = Table(title="What is shared, layer by layer", title_justify="left")
        for name in ("candidate", "layer", "group"):
            table.add_column(name)
        for name in ("ρ", "γ shared", "of shared", "γ free", "of free"):
            table.add_column(name, justify="right", no_wrap=True)
        for candidate in self.rows:
            for row in candidate.sharing:
                numbers = [
                    text
                    for pathway in ("shared", "free")
                    for text in (f"{row.effective.get(pathway, 0.0):.1f}", str(row.parameters.get(pathway, 0)))
                ]
                group = candidate.groups.get(row.name, "–")
                strength = "–" if group == "trivial" else f"{row.strength:.2f}"  # over one element nothing is shared
                table.add_row(candidate.name, row.name, group, strength, *numbers)
        return table

    def save(self, path: str | Path) -> None:
        """Write everything but the fits as JSON, whole or not at all; factors and probabilities are written as well."""
        text = json.dumps(self.record(), indent=1)
        write_whole(Path(path), lambda draft: draft.write_text(text))

    def record(self) -> dict[str, Any]:
        """What `save` writes."""
        return {
            "settings": self.settings,
            "log_bayes_factors": self.log_bayes_factors,
            "probabilities": self.probabilities,
            "candidates": [asdict(row) for row in self.rows],
        }

    @classmethod
    def load(cls, path: str | Path) -> "Ranking":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing or is not a ranking.
        """
        try:
            record = json.loads(Path(path).read_text())
            rows = [
                Candidate(**(row | {"sharing": [SharingRow(**layer) for layer in row["sharing"]]}))
                for row in record["candidates"]
            ]
            return cls(rows, record["settings"])
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a ranking written by bayesws") from error


@dataclass(frozen=True)
class LayerRanking:
    """Which structure every layer wants, the other layers being as they are in the best network that was found.

    Attributes:
        chosen: the structure of every layer in that network.
        log_evidences: for every layer, by structure: log evidence of the network with this structure in this layer,
            nats, summed over the training data.
        ranking: all networks that were tried, each named by its layers' structures; its best one is the chosen one.
    """

    chosen: tuple[str, ...]
    log_evidences: list[dict[str, float]]
    ranking: Ranking

    @property
    def log_bayes_factors(self) -> list[dict[str, float]]:
        """For every layer, by structure: log evidence less that of the chosen network, nats; none is positive."""
        best = self.ranking.best.log_evidence
        return [{name: evidence - best for name, evidence in layer.items()} for layer in self.log_evidences]

    @property
    def probabilities(self) -> list[dict[str, float]]:
        """For every layer: p(structure | D, other layers as chosen) under equal prior odds."""
        return [_probabilities(factors) for factors in self.log_bayes_factors]

    def table(self) -> Table:
        """Log Bayes factors of every layer's structures against the chosen one, the other layers as chosen."""
        table = Table(
            title="Log Bayes factors by layer, nats",
            title_justify="left",
            caption=(bound := self.ranking.settings.get("bound")) and f"({bound})",
            caption_justify="left",
        )
        table.add_column("layer", justify="right")
        for name in self.log_evidences[0]:
            table.add_column(name, justify="right", no_wrap=True)
        for place, (factors, chosen) in enumerate(zip(self.log_bayes_factors, self.chosen, strict=True), 1):
            table.add_row(str(place), *("[b]chosen[/b]" if n == chosen else f"{f:.1f}" for n, f in factors.items()))
        return table

    def save(self, path: str | Path) -> None:
        """Write what `Ranking.save` does, and beside it the layers: JSON, whole or not at all."""
        layers = {"chosen": self.chosen, "log_evidences": self.log_evidences, "probabilities": self.probabilities}
        text = json.dumps(self.ranking.record() | {"layers": layers}, indent=1)
        write_whole(Path(path), lambda draft: draft.write_text(text))

    @classmethod
    def load(cls, path: str | Path) -> "LayerRanking":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing, is not a ranking, or is one of whole networks alone.
        """
        ranking = Ranking.load(path)
        layers = json.loads(Path(path).read_text()).get("layers")
        if layers is None:
            raise ValueError(f"{path} ranks whole networks: expected a ranking by layers; use Ranking.load")
        return cls(tuple(layers["chosen"]), layers["log_evidences"], ranking)


def _probabilities(factors: dict[str, float]) -> dict[str, float]:
    odds = {name: math.exp(factor) for name, factor in factors.items()}
    return {name: odd / sum(odds.values()) for name, odd in odds.items()}
