"""What a report is made of: sections of blocks, in words, figures and tables."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayesws.report.figures.drawing import Drawing
from bayesws.report.grid import Grid, Products, facts
from bayesws.training.result import SharingRow

WORDS = {"evidence": "the evidence", "task": "the task loss"}
OTHER_TONES = ("cool", "warm", "plum")
PATHWAY_TONES = ("accent", "warm", "cool", "plum", "grey")


@dataclass(frozen=True)
class Block:
    """Under one heading: words, a command, figures side by side, a composition table, tables, notes."""

    heading: str
    words: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    products: Products | None = None
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    command: str = ""


@dataclass(frozen=True)
class Section:
    """All about one run.

    Attributes:
        kind: what it is, such as "Comparison".
        name: of its folder.
        summary: sentences, the most important one first.
        figures: (what, number, unit), shown large; at most four.
        blocks: the rest.
        within: name of the run that it is a part of; empty where it is one itself.
    """

    kind: str
    name: str
    summary: Sequence[str]
    blocks: Sequence[Block]
    figures: Sequence[tuple[str, str, str]] = ()
    within: str = ""

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return re.sub(r"\W+", "-", f"{self.within}-{self.name}" if self.within else self.name).strip("-") or "run"


@dataclass(frozen=True)
class Origin:
    """Where a run's numbers come from, as far as it was recorded.

    Attributes:
        settings: the run's own record of them.
        missing: what to say of a command and of versions that it does not hold.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: str = "not recorded"

    def block(self, **more: Any) -> Block:
        """Command, seed, versions and settings; what was not recorded is said to be so."""
        settings = dict(self.settings)
        command, versions = settings.pop("command", None), settings.pop("versions", None)
        first = {"versions": versions or self.missing}
        if not command:
            first = {"command": self.missing} | first
        exact = shlex.join(command) if isinstance(command, list) else command or ""
        return Block("How it was made", grids=[facts("", first | more | settings)], command=exact)


def of_rho(value: float) -> str:
    """A sharing strength: what tells 0.999 from 1 is worth a digit; a dash where nothing shares."""
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if 0.01 <= value < 0.985 or value in (0.0, 1.0) else f"{value:.3f}"


def signed(value: float, digits: int) -> str:
    """A number with a true minus sign, thousands told apart by a thin space."""
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def tones_of(names: Sequence[str]) -> dict[str, str]:
    """A tone for every objective: the evidence has the accent, the task loss is grey."""
    tones = {"evidence": "accent", "task": "grey"}
    others = [name for name in names if name not in tones]
    return tones | {name: OTHER_TONES[i % len(OTHER_TONES)] for i, name in enumerate(others)}


def tones_of_pathways(rows: Sequence[SharingRow]) -> dict[str, str]:
    """A tone for every pathway's name, in the order in which layers have them."""
    return tones_of_names(name for row in rows for name in row.parameters)


def tones_of_names(names: Iterable[str]) -> dict[str, str]:
    """A tone for every name, in the order in which they come first."""
    return {name: PATHWAY_TONES[i % len(PATHWAY_TONES)] for i, name in enumerate(dict.fromkeys(names))}


def together(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
