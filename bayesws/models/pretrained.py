"""Networks that were trained elsewhere: found by name, with the weights that a user has."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.io.arguments import first_line
from bayesws.io.tensor_files import read_tensors
from bayesws.models.pickles import check_sizes, state_of
from bayesws.models.programs import read_program

CURE = "save model.state_dict(), best as safetensors"


def pretrained_network(model: str, weights: str | Path | None = None, trust: bool = False) -> nn.Module:
    """A network in eval mode (an exported program in the one that it was exported in), from whatever names it.

    Args:
        model: a torch.export program, FILE.pt2 (one for a single batch size is run in such batches); a factory in
            importable code, "package.module:function", called without arguments; or the name of a torchvision
            architecture, such as "resnet18", made with as many classes as the weights have.
        weights: its state dict, FILE.safetensors, or FILE.pt, read without unpickling code; None keeps those it is made
            with (random ones for torchvision: nothing is downloaded).
        trust: open a program that may run code, such as one with pickles in it.

    Raises:
        ValueError: what cannot be found or read, weights that do not fit.
    """
    if model.endswith(".pt2"):
        if weights is not None:
            raise ValueError(f"weights={str(weights)!r} beside {model}: an exported program has its own")
        return _exported(Path(model), trust)
    state = None if weights is None else _state(Path(weights))
    try:
        net = _made(model) if ":" in model else _torchvision(model, state)
        if state is not None:
            net.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(f"weights {weights} do not fit {model}: {lines[min(1, len(lines) - 1)]}; {CURE}") from error
    return net.eval()


def _exported(path: Path, trust: bool) -> nn.Module:
    if not path.is_file():
        raise ValueError(f"no file {path}: expected a program saved by torch.export.save")
    program = read_program(path, trust)
    try:
        net = program.module()
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path} is no program saved by torch.export.save: {first_line(error)}") from error
    images = next((n.meta["val"] for n in program.graph.nodes if n.name in program.graph_signature.user_inputs), None)
    size = images.shape[0] if isinstance(images, Tensor) and images.ndim else None
    return _InBatches(net, size) if isinstance(size, int) else net


class _InBatches(nn.Module):
    """A program that was exported for one batch size, for any: what is missing in the last batch is filled up."""

    def __init__(self, program: nn.Module, size: int) -> None:
        super().__init__()
        self.program, self.size = program, size

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, ...), one for each datum."""
        missing = -len(x) % self.size
        filled = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        outputs = [self.program(part) for part in filled.split(self.size)]
        for y in outputs:
            if not isinstance(y, Tensor) or y.shape[:1] != (self.size,):
                kind = f"outputs of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
                raise RuntimeError(f"the program gives {kind} for a batch of {self.size}: expected a row a datum")
        return torch.cat(outputs)[: len(x)]


def _state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no file {path}: expected a state dict, FILE.safetensors or FILE.pt")
    found: Any = read_tensors(path, CURE)[0] if path.suffix == ".safetensors" else state_of(path, CURE)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise ValueError(f"{path} is no state dict: expected tensors by name; {CURE}")
    check_sizes(found, path, CURE)
    return found


def _made(model: str) -> nn.Module:
    place, _, name = model.partition(":")
    try:
        factory = getattr(importlib.import_module(place), name)
        if inspect.isbuiltin(factory):
            raise TypeError("a function of Python's own makes no network")  # and some end the process
        net = factory()
    except (Exception, SystemExit) as error:  # whatever code of the user's raises
        raise ValueError(
            f"model {model!r}: {type(error).__name__}: {first_line(error)}; expected package.module:function, called "
            "without arguments"
        ) from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"model {model!r} gives a {type(net).__name__}: expected an nn.Module")
    return net


def _torchvision(model: str, state: Mapping[str, Tensor] | None) -> nn.Module:
    from torchvision import models

    if model not in models.list_models():
        came = " is a file of weights: give it with --weights beside a model" if Path(model).is_file() else ""
        raise ValueError(
            f"model {model!r}{came}: expected a folder that bayesws fit wrote, FILE.pt2, package.module:function, or a "
            "torchvision name such as 'resnet18'"
        )
    settings = {}
    if state is not None:
        with torch.device("meta"):
            sizes = {name: len(p) for name, p in models.get_model(model, weights=None).named_parameters() if p.ndim}
        head = list(sizes)[-1]  # the bias or the weight of the last layer: a row for each class
        settings = {"num_classes": len(state[head])} if head in state and state[head].ndim else {}
        with torch.device("meta"):  # other sizes are told before they are made
            models.get_model(model, weights=None, **settings).load_state_dict(state, assign=True)
    return models.get_model(model, weights=None, **settings)


def seen_by(net: nn.Module, images: Tensor) -> Tensor:
    """The images with as many channels as the network's first convolution takes: grey ones are repeated.

    Raises:
        ValueError: channels that do not fit.
    """
    first = next((m for m in net.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    wanted = images.shape[1] if first is None else first.in_channels
    if images.shape[1] == 1:
        return images.expand(-1, wanted, -1, -1)
    if wanted != images.shape[1]:
        raise ValueError(f"images of {images.shape[1]} channels: this network takes {wanted}")
    return images
