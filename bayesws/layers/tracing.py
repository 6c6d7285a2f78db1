"""One run of a network, written down as a graph of torch functions and plain modules (torch.fx)."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

READS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy")  # a graph cannot branch on values


def traced(net: nn.Module, example: Tensor) -> fx.GraphModule:
    """What the network does with an input like the example, with the network's own parameters, in eval mode.

    Modules that are torch's own, with all they hold, are called as they are; of all others the torch functions that
    they call are written down. Shapes are those of the example but for the first dimension of what depends on it, which
    stays open where the network takes it from `x.shape[0]` or `x.size(0)`, or does not take it at all.

    Args:
        net: takes one tensor; its output is one tensor.
        example: x (batch, ...).

    Raises:
        ValueError: a network that branches on values, or computes with tensors that follow from none of its own.
    """
    net.eval()
    recorder = _Tracer(net, example)
    handles = []
    for name, module in net.named_modules():
        if is_plain(module):
            handles.append(module.register_forward_pre_hook(recorder.enter))
            leave = recorder.leaving(name)
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad(), recorder:
            output = net(example)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        raise ValueError(f"the network gives a {type(output).__name__}: expected one tensor")
    recorder.graph.output(recorder.argument(output))
    recorder.graph.lint()
    return fx.GraphModule(net, recorder.graph).eval()


def is_plain(module: nn.Module) -> bool:
    """Whether a module, with all that it holds, is made of torch's own classes."""
    return all(type(part).__module__.partition(".")[0] == "torch" for part in module.modules())


class _Size(int):
    """The length of a tensor's first dimension: a number that knows where it is from."""

    tensor: Tensor


class _Tracer(TorchFunctionMode):
    """Hears every torch function outside of plain modules, and knows which node made which tensor."""

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.own = {id(t): name for name, t in [*net.named_parameters(), *net.named_buffers()]}
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Tensor] = []  # an id may not be given to another tensor
        self.depth = 0  # of plain modules that are running
        self.made(example, self.graph.placeholder("x"))

    def made(self, output: Any, node: fx.Node) -> None:
        """Note that a node makes a tensor, or several in a tuple or list."""
        if isinstance(output, Tensor):
            self.nodes[id(output)] = node
            self.alive.append(output)
            return
        for index, part in enumerate(output):
            if isinstance(part, Tensor):
                self.made(part, self.graph.call_function(operator.getitem, (node, index)))

    def argument(self, value: Any) -> Any:
        """What a node takes in the place of a value."""
        if isinstance(value, _Size):
            return self.graph.call_method("size", (self.argument(value.tensor), 0))
        if isinstance(value, tuple | list):
            parts = [self.argument(part) for part in value]
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, dict):
            return {key: self.argument(part) for key, part in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.argument, (value.start, value.stop, value.step)))
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.nodes and id(value) in self.own:
            self.made(value, self.graph.get_attr(self.own[id(value)]))
        if id(value) not in self.nodes:
            raise ValueError(
                f"the network computes with a tensor of shape {tuple(value.shape)} that is neither its input, nor its "
                "own, nor made from these by torch functions: register it as a buffer"
            )
        return self.nodes[id(value)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.depth:
            return output
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name in READS or name.startswith("__set"):
            raise ValueError(f"the network calls {name} on a tensor: what it computes may not depend on values")
        if name in ("shape", "size"):
            return _marked(output, *args, **kwargs)
        if not any(isinstance(part, Tensor) for part in (output if isinstance(output, tuple | list) else [output])):
            return output
        if func.__name__ == "__get__":
            node = self.graph.call_function(getattr, (self.argument(args[0]), name))
        elif getattr(Tensor, name, None) is func:
            node = self.graph.call_method(name, self.argument(tuple(args)), self.argument(kwargs))
        else:
            node = self.graph.call_function(func, self.argument(tuple(args)), self.argument(kwargs))
        self.made(output, node)
        return output

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before a plain module."""
        self.depth += 1

    def leaving(self, name: str) -> Any:
        """After the plain module of that name."""

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.depth -= 1
            if not self.depth:
                self.made(output, self.graph.call_module(name, self.argument(args), self.argument(kwargs)))

        return leave


def _marked(sizes: Any, tensor: Tensor, dim: int | None = None) -> Any:
    """A shape, or one of its sizes, with the first one marked."""
    if isinstance(sizes, int) and dim != 0:
        return sizes
    first = _Size(sizes if isinstance(sizes, int) else sizes[0] if len(sizes) else 0)
    first.tensor = tensor
    return first if isinstance(sizes, int) else torch.Size([first, *sizes[1:]]) if len(sizes) else sizes
