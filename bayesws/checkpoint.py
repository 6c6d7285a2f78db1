"""What is left of a fit that was stopped: enough to go on to the same numbers, to the last bit.

A checkpoint is a folder: losses.json has the held-out losses of the settings that were tried, state.safetensors the run
that was under way. Both say which fit they are of, by a digest of everything that its numbers depend on.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayesws.files import write_whole

SECONDS = 10.0  # between two states that are written


class Resumable(Protocol):
    """A training run between two epochs."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and plain values."""
        ...

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put a new run where `state` was taken."""
        ...


def digest_of(settings: Any, tensors: Iterable[Tensor]) -> str:
    """A digest of settings, by their text, and of tensors, by their numbers."""
    found = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Checkpoint:
    """A folder that a fit writes into as it goes, and goes on from.

    Attributes:
        folder: made when there is something to write.
        digest: of the fit.
        seconds: between two states; 0 writes one after every epoch.
    """

    def __init__(self, folder: Path, digest: str, seconds: float = SECONDS) -> None:
        self.folder, self.digest, self.seconds = folder, digest, seconds
        self._written = time.monotonic()

    def losses(self) -> dict[str, float]:
        """Held-out losses by the settings that were tried.

        Raises:
            ValueError: a file that is damaged or of another fit.
        """
        path = self.folder / "losses.json"
        if not path.exists():
            return {}
        try:
            record = json.loads(path.read_text())
            digest, losses = record["digest"], record["losses"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: remove {self.folder}, and the fit starts anew") from error
        self._check(digest)
        return losses

    def keep_losses(self, losses: dict[str, float]) -> None:
        """Write all losses so far; the state of the run that gave the last is not needed any more."""
        text = json.dumps({"digest": self.digest, "losses": losses})
        write_whole(self.folder / "losses.json", lambda draft: draft.write_text(text))
        (self.folder / "state.safetensors").unlink(missing_ok=True)

    def resume(self, run: Resumable, what: str) -> int:
        """Put `run`, newly made, where its state was kept; returns the epochs that it has done, 0 where none was kept.

        Args:
            run: a run of the fit.
            what: which one, such as its penalties.

        Raises:
            ValueError: a file that is damaged or of another fit.
        """
        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:
                record = json.loads(file.metadata()["record"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged: remove {self.folder}, and the fit starts anew") from error
        self._check(record["digest"])
        if record["what"] != what:
            return 0
        run.restore(tensors, record["state"])
        return record["epochs"]

    def after_epoch(self, run: Resumable, what: str, epochs: int) -> None:
        """Write the run's state, where the last is old enough."""
        if time.monotonic() - self._written < self.seconds:
            return
        tensors, state = run.state()
        record = json.dumps({"digest": self.digest, "what": what, "epochs": epochs, "state": state})
        owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        write_whole(self.folder / "state.safetensors", lambda draft: save_file(owned, draft, {"record": record}))
        self._written = time.monotonic()

    def remove(self) -> None:
        """Leave nothing: the fit is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, digest: str) -> None:
        if digest != self.digest:
            raise ValueError(
                f"{self.folder} was left by a fit with other data or settings: remove it, or choose another place"
            )
