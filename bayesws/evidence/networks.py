"""Networks that the evidence can look into, and outputs that it can differentiate: the others are told in one line."""

from typing import Any

import torch
from torch import Tensor, nn

from bayesws.io.arguments import first_line

PRECISE = (torch.float32, torch.float64)
# what networks raise at inputs that they are not made for; a ValueError says so in its own words
FAILURES = (RuntimeError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError)


def check_network_kind(net: Any) -> None:
    """Raise ValueError for what no evidence can be computed of, whatever the data."""
    if not isinstance(net, nn.Module):
        hint = "; call it, it makes one" if callable(net) else ""
        raise ValueError(f"a {type(net).__name__} in the place of a network: expected an nn.Module{hint}")
    if torch.is_inference_mode_enabled():
        raise ValueError("called within torch.inference_mode: gradients are needed; call it outside, or in no_grad")
    for module in net.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"a scripted or traced network ({type(net).__name__}): expected it as it was before")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                "a compiled network: expected it as it was before torch.compile, whose layers can be heard"
            )
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(f"parameter {name!r} is not initialised: expected a network that has seen one batch")
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} has no values (meta): expected a network on a device; try to_empty")
        if parameter.is_inference():
            raise ValueError(f"parameter {name!r} was made within torch.inference_mode: make or load it outside")
        if parameter.requires_grad and parameter.dtype not in PRECISE:
            raise ValueError(
                f"parameter {name!r} of type {parameter.dtype}: expected float32 or float64; try net.float()"
            )


def check_trained(net: nn.Module) -> None:
    """Raise ValueError for a network in which nothing can be trained."""
    if not any(True for _ in net.parameters()):
        raise ValueError(f"a {type(net).__name__} without parameters: expected some, of nn.Linear or the like")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(
            f"a {type(net).__name__} whose parameters are all frozen: expected one that requires a gradient"
        )


def outputs_of(net: nn.Module, x: Tensor) -> Tensor:
    """A network's outputs, (batch, ...).

    Raises:
        ValueError: inputs that it does not take; outputs that are no tensor of float32 or float64 with the batch as its
            first dimension and a number for every datum.
    """
    try:
        outputs = net(x)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        reason = first_line(error)
        kind = f"inputs of shape {tuple(x.shape)} and type {x.dtype}"
        raise ValueError(f"the {type(net).__name__} does not take {kind}: {reason}") from error
    return checked_outputs(net, outputs, len(x))


def checked_outputs(net: nn.Module, outputs: Any, batch: int) -> Tensor:
    """The same outputs; see `outputs_of`."""
    told = f"a {type(net).__name__} that gives"
    if not isinstance(outputs, Tensor):
        kind = f"{type(outputs).__name__}"
        raise ValueError(f"{told} a {kind}: expected one tensor (batch, ...); wrap it in a module that picks one")
    if outputs.ndim == 0 or len(outputs) != batch or not outputs.numel():
        raise ValueError(
            f"{told} outputs of shape {tuple(outputs.shape)} for {batch} data: expected (batch, ...), one number a "
            "datum or more"
        )
    if outputs.dtype not in PRECISE:
        raise ValueError(
            f"{told} outputs of type {outputs.dtype}: expected float32 or float64; compute without autocast"
        )
    return outputs
