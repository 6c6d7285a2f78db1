"""How many rows the steps of a fit take: as many as hold what the data determine, found as it trains."""

from collections.abc import Iterator

from bayesws.evidence.by_default import Size, columns_of, with_more_rows
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.objective import Evidence
from bayesws.training.objectives.objective import Setting

ENOUGH = 0.5  # effective parameters, as a share of the rows: with more of them the next step takes more rows
SPARE = 0.25  # of fewer rows: with less these will do again
TOO_FEW = (
    "the data determine more parameters than affordable sampled rows can hold: the last step on the evidence took "
    "Kronecker factors of one sampled column a datum"
)


class EnoughRows:
    """The curvatures that a step may take, and which of them the next one begins with.

    At first the data often determine much more than at the end, as the first precisions are low; so no choice is for
    good. With more rows than `ENOUGH` says the same step is taken again, by the next curvature. The last of several
    takes Kronecker factors, for steps whose most rows are too few (`Evidence.saturated`).

    Attributes:
        curvatures: one, where no rows are sampled.
        level: of the next step's first.
        too_few: whether the last step took Kronecker factors for want of rows.
    """

    def __init__(self, curvature: Curvature, setting: Setting) -> None:
        self.curvatures, self.level, self.too_few = [curvature], 0, False
        x, count = setting.data.example(), setting.data.total
        if curvature.kind == "full" and curvature.samples is not None:
            if x is not None and count >= 0 and curvature.subset == 1:
                columns = columns_of(setting.net, x, setting.likelihood)
                self.curvatures = with_more_rows(curvature, Size.of(setting.net, x), count, columns)
            self.curvatures.append(Curvature("kron", samples=1, seed=curvature.seed))

    def __iter__(self) -> Iterator[Curvature]:
        """Those of one step, until one is enough."""
        while True:
            yield self.curvatures[self.level]
            self.level += 1

    def enough(self, found: Evidence) -> bool:
        """Whether a step by the present curvature will do; if so, where the next one begins."""
        last = len(self.curvatures) - 1
        self.too_few = self.level == last > 0
        if self.level < last and (found.saturated or (self.level < last - 1 and found.filled > ENOUGH)):
            return False
        self.level = min(self.level, max(0, last - 1))
        if found.sampled_rows is not None:
            gamma, fewer = found.filled * found.sampled_rows, self._rows
            while self.level and gamma < SPARE * fewer(self.level - 1, found.examples):
                self.level -= 1
        return True

    def _rows(self, level: int, count: int) -> int:
        curvature = self.curvatures[level]
        return min(count, curvature.rows) * (curvature.samples or 1)

    def state(self) -> dict[str, object]:
        """For `restore`."""
        return {"level": self.level, "too_few": self.too_few}

    def restore(self, values: dict) -> None:
        """See `state`."""
        self.level, self.too_few = values["level"], values["too_few"]

    def notes(self) -> list[str]:
        """What there is to say of the last step."""
        return [TOO_FEW] * self.too_few
