"""What a fit leaves on its way: enough for the same fit to go on to the same numbers, to the last bit.

A checkpoint is a folder: losses.json has the held-out losses of the settings that were tried, state.safetensors the run
that is under way, starts.json what the finished ones of several starts have come to, start-N.safetensors the state of
the best of them, fit/ the finished fit, with finished.json beside it. All say which fit they are of, by a digest of
everything that its numbers depend on.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from bayesws.evidence.batches import digest_of
from bayesws.evidence.likelihood import Likelihood
from bayesws.io.files import save_tensors, write_whole
from bayesws.io.json_files import Count, parsed, read_json, sealed
from bayesws.io.tensor_files import Digest, digest_of_file, read_tensors
from bayesws.training.result import FitResult
from bayesws.training.summaries import Start, best_of

SECONDS = 10.0  # between two states that are written
PASSING = ("state.safetensors", "losses.json", "starts.json")  # files that nobody needs once the fit is finished


@dataclass(frozen=True)
class Losses:
    """What losses.json holds: the digest of the fit, and held-out losses by the settings that were tried."""

    digest: Digest
    losses: dict[str, float]


@dataclass(frozen=True)
class FinishedStarts:
    """What starts.json holds: the digest of the fit, and what its finished starts have come to."""

    digest: Digest
    starts: tuple[Start, ...]


@dataclass(frozen=True)
class Finished:
    """What finished.json holds: the digest of the fit, and SHA-256 of its fit.json."""

    digest: Digest
    fit: Digest


@dataclass(frozen=True)
class Progress:
    """What state.safetensors holds beside its tensors: which run of which fit, its epochs and its plain values."""

    digest: Digest
    what: str
    epochs: Count
    state: dict[str, Any]


Left = TypeVar("Left", Losses, FinishedStarts, Finished)


class Resumable(Protocol):
    """A training run between two epochs."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and plain values."""
        ...

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put a new run where `state` was taken."""
        ...


class Checkpoint:
    """A folder that a fit writes into as it goes, and goes on from.

    Attributes:
        folder: made when there is something to write.
        digest: of the fit.
        seconds: between two states; 0 writes one after every epoch.
    """

    def __init__(self, folder: Path, digest: str, seconds: float = SECONDS) -> None:
        self.folder, self.digest, self.seconds = folder, digest, seconds
        self._cure = f"remove {folder}, and the fit starts anew"
        self._written = time.monotonic()

    def losses(self) -> dict[str, float]:
        """Held-out losses by the settings that were tried.

        Raises:
            ValueError: a file that is damaged or of another fit.
        """
        return {} if (found := self._read("losses.json", Losses)) is None else found.losses

    def keep_losses(self, losses: dict[str, float]) -> None:
        """Write all losses so far; the state of the run that gave the last is not needed any more."""
        self._write("losses.json", {"losses": losses})
        (self.folder / "state.safetensors").unlink(missing_ok=True)

    def starts(self) -> tuple[Start, ...]:
        """What the finished ones of several starts have come to.

        Raises:
            ValueError: a file that is damaged or of another fit.
        """
        return () if (found := self._read("starts.json", FinishedStarts)) is None else found.starts

    def keep_starts(self, starts: Sequence[Start]) -> None:
        """Write what all starts so far have come to, and keep the state of the best: that of the last was just kept."""
        state, best = self.folder / "state.safetensors", self.folder / _file_of(best_of(starts))
        if best.name == _file_of(starts[-1]):
            write_whole(best, lambda draft: shutil.copyfile(state, draft))
        self._write("starts.json", {"starts": [asdict(start) for start in starts]})
        for path in (state, *self._of_starts()):
            if path != best:
                path.unlink(missing_ok=True)

    def restore_start(self, run: Resumable, start: Start, what: str) -> None:
        """Put `run`, newly made, at the last epoch of the best start.

        Raises:
            ValueError: a file that is missing, damaged or of another fit.
        """
        if not self.resume(run, what, _file_of(start)):
            raise ValueError(f"{self.folder / _file_of(start)} is missing or of another start; {self._cure}")

    def resume(self, run: Resumable, what: str, name: str = "state.safetensors") -> int:
        """Put `run`, newly made, where its state was kept; returns the epochs that it has done, 0 where none was kept.

        Args:
            run: a run of the fit.
            what: which one, such as its penalties.
            name: of the file.

        Raises:
            ValueError: a file that is damaged or of another fit.
        """
        path = self.folder / name
        if not path.exists():
            return 0
        tensors, beside = read_tensors(path, self._cure)
        text = beside.get("record", "")
        record = parsed(text.encode(), str(path), Progress, self._cure, sealed=False, nonfinite=True)
        self._check(record.digest)
        if beside.get("sha256") != _digest_of(text, tensors):
            raise ValueError(f"{path} was changed since it was written: its SHA-256 is of something else; {self._cure}")
        if record.what != what:
            return 0
        run.restore(tensors, record.state)
        return record.epochs

    def after_epoch(self, run: Resumable, what: str, epochs: int) -> None:
        """Write the run's state, where the last is old enough."""
        if time.monotonic() - self._written >= self.seconds:
            self.keep(run, what, epochs)

    def keep(self, run: Resumable, what: str, epochs: int) -> None:
        """Write the run's state."""
        tensors, state = run.state()
        record = json.dumps({"digest": self.digest, "what": what, "epochs": epochs, "state": state})
        owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        beside = {"record": record, "sha256": _digest_of(record, owned)}
        write_whole(self.folder / "state.safetensors", lambda draft: save_tensors(owned, draft, beside))
        self._written = time.monotonic()

    def finished(self, model: nn.Module, likelihood: Likelihood) -> FitResult | None:
        """The finished fit, with its weights in `model` and its noise in `likelihood`; None where it is not finished.

        Raises:
            ValueError: files that are damaged or of another fit.
        """
        if (found := self._read("finished.json", Finished)) is None:
            return None
        record = self.folder / "fit" / "fit.json"
        if record.is_file() and digest_of_file(record) != found.fit:
            raise ValueError(f"{record} is of another fit than {self.folder / 'finished.json'}; {self._cure}")
        self._leave_only_the_fit()
        return FitResult.load(self.folder / "fit", model, likelihood)

    def finish(self, fit: FitResult) -> None:
        """Keep the finished fit, and no more."""
        fit.save(self.folder / "fit")
        self._write("finished.json", {"fit": digest_of_file(self.folder / "fit" / "fit.json")})
        self._leave_only_the_fit()

    def _leave_only_the_fit(self) -> None:
        for path in (*(self.folder / name for name in PASSING), *self._of_starts()):
            path.unlink(missing_ok=True)

    def _of_starts(self) -> list[Path]:
        return list(self.folder.glob("start-*.safetensors"))

    def _read(self, name: str, kind: type[Left]) -> Left | None:
        path = self.folder / name
        if not path.exists():
            return None
        record = read_json(path, kind, self._cure, nonfinite=True)
        self._check(record.digest)
        return record

    def _write(self, name: str, record: dict[str, Any]) -> None:
        text = json.dumps(sealed({"digest": self.digest} | record))
        write_whole(self.folder / name, lambda draft: draft.write_text(text))

    def _check(self, digest: str) -> None:
        if digest != self.digest:
            raise ValueError(
                f"{self.folder} was left by a fit with other data or settings: remove it, or choose another place"
            )


def _file_of(start: Start) -> str:
    """With the state of a finished start."""
    return f"start-{start.number}.safetensors"


def _digest_of(record: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a state: its record, and its tensors with their names."""
    names = sorted(tensors)
    return digest_of((record, names), [tensors[name] for name in names])
