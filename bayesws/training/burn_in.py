"""The epochs before the first step on the hyperparameters."""

from statistics import fmean

from bayesws.training.schedule import Schedule

WITH_STRUCTURE = 0.1  # of the epochs
LATEST = 0.4  # of the epochs, where the run decides
SETTLED = 0.1  # relative decrease of what the weights descend on


class BurnIn:
    """A share of the run that is told; or, where nobody tells, until the weights have settled under their first prior.

    MacKay's step reads γ / ‖θ‖² of weights at their MAP, where the likelihood's gradient and the prior's pull balance.
    Weights that are still fast on their way there look as if the data asked for less than they do. So the first step
    waits until what the weights descend on fell by less than a tenth from one `every` epochs to the next: its mean over
    them, as single epochs are noisy; or for 0.4 of the run. With structure to learn, for 0.1 of it.

    Attributes:
        epochs: of the burn-in; None as long as it is not over.
        descent: mean of what the weights descend on, nats per datum, by epoch.
    """

    def __init__(self, plan: Schedule, structured: bool) -> None:
        self.plan = plan
        told = WITH_STRUCTURE if plan.burn_in is None and structured else plan.burn_in
        self.epochs = None if told is None else round(told * plan.epochs)
        self.descent: list[float] = []

    def over(self, epoch: int) -> bool:
        """Whether this epoch, counted from 1, is past the burn-in."""
        return self.epochs is not None and epoch > self.epochs

    def look(self, epoch: int, value: float) -> None:
        """Take in what the weights descended on in an epoch that is done; perhaps it was the first past the burn-in."""
        if self.epochs is None:
            self.descent.append(value)
            if self._settled() or epoch > LATEST * self.plan.epochs:
                self.epochs = epoch - 1

    def _settled(self) -> bool:
        window = self.plan.wait
        if len(self.descent) < 2 * window:
            return False
        before, now = fmean(self.descent[-2 * window : -window]), fmean(self.descent[-window:])
        return now > (1 - SETTLED) * before

    def state(self) -> dict[str, object]:
        """For `restore`."""
        return {"epochs": self.epochs, "descent": self.descent}

    def restore(self, values: dict) -> None:
        """See `state`."""
        self.epochs, self.descent = values["epochs"], values["descent"]
