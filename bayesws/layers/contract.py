"""What a layer declares: its pathways, their precisions, its structure. The only thing the evidence knows of layers.

A pathway is a block of parameters with the prior N(0, δ⁻¹ I). Seen from a plain linear map of the same effective
kernel K (fan_out, fan_in), every pathway enters linearly: K = Σ_p embed_p(θ_p). Its gradient is therefore a linear map
of the kernel's gradient (`pull_back`), and its Kronecker factors follow from the kernel's own (`factors`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn

from bayesws.sharing.doubly_stochastic import DoublyStochastic

Factors = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pathway:
    """A named block of parameters with one prior precision.

    Attributes:
        name: its name within the layer, such as "shared", "free", "bias", "weight".
        parameter: θ, any shape; its prior is N(0, exp(-log_precision) I).
        log_precision: log δ, a scalar tensor; None where the layer has none of its own (a plain torch layer), and the
            caller's, or log 1, is taken.
        pull_back: what the pathway makes of the gradient of what it acts through (see `acts`), (..., fan_out, fan_in)
            or (..., fan_out), to (..., numel of θ). Linear, differentiable in the layer's structure.
        factors: what the pathway makes of the kernel's Kronecker factors A (fan_in, fan_in) and B (fan_out, fan_out):
            one or several blocks (A_k, B_k) with H_θ ≈ blockdiag_k(A_k ⊗ B_k), blocks of equal size. Covariances
            between the blocks are left out, which can only lower the evidence. For biases A is the number 1, shape
            (1, 1). Here the group's elements count as independent examples (KFAC-expand).
        reduced_factors: the same where they are summed first (KFAC-reduce); None where there is no difference.
        acts: "kernel" (y = K a), "bias" (y = b) or "scale" (y = s ∘ a, elementwise; it needs no `factors`).
        of_prior_only: whether the pathway is there only for the prior's variance. Training on the task loss, which has
            no such prior, leaves it where it is.
        breaks_sharing: whether the layer would share exactly without it: free weights beside shared ones.
    """

    name: str
    parameter: nn.Parameter
    log_precision: Tensor | None
    pull_back: Callable[[Tensor], Tensor]
    factors: Callable[[Tensor, Tensor], Factors]
    reduced_factors: Callable[[Tensor, Tensor], Factors] | None = None
    acts: str = "kernel"
    of_prior_only: bool = False
    breaks_sharing: bool = False

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return self.parameter.numel()


@dataclass(frozen=True)
class Declaration:
    """What one layer tells the evidence about itself.

    Attributes:
        pathways: in the order of their parameters.
        patches: layer input (batch, ...) to (batch, fan_in, positions), the vectors that the kernel is applied to.
        responses: layer output, or its gradient, (batch, ...) to (batch, fan_out, positions).
        structure: hyperparameters Θ of the representation stack; empty where it is fixed.
        precisions: every log precision that is the layer's own, those of frozen pathways included.
        stack: the representations that Θ makes, with how well they converged; None where nothing is learned.
    """

    pathways: tuple[Pathway, ...]
    patches: Callable[[Tensor], Tensor]
    responses: Callable[[Tensor], Tensor]
    structure: tuple[nn.Parameter, ...] = ()
    precisions: tuple[Tensor, ...] = ()
    stack: Callable[[], DoublyStochastic] | None = None


@singledispatch
def declare(module: nn.Module) -> Declaration | None:
    """The declaration of a layer; None for a module that declares nothing (activations, containers, ...)."""
    return None


def declarations(net: nn.Module) -> dict[str, tuple[nn.Module, Declaration]]:
    """Every declaring layer of a network by its name (the module path; "" for the network itself).

    Raises:
        ValueError: a parameter that is trained (requires_grad) and that no layer declares, or that two declare.
    """
    found = {
        name: (module, declaration)
        for name, module in net.named_modules()
        if (declaration := declare(module)) is not None
    }
    declared: set[int] = set()
    for name, (_, declaration) in found.items():
        for parameter in [p.parameter for p in declaration.pathways] + list(declaration.structure):
            if id(parameter) in declared:
                raise ValueError(
                    f"layer {name!r} shares a parameter with another layer: expected one layer a parameter; "
                    "call one module twice instead"
                )
            declared.add(id(parameter))
        declared |= {id(t) for t in declaration.precisions}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and id(parameter) not in declared:
            module = type(net.get_submodule(name.rpartition(".")[0])).__name__
            raise ValueError(
                f"parameter {name!r} of a {module}: expected parameters of nn.Linear, nn.Conv1d/2d/3d, affine "
                "normalisation or bayesws.layers; freeze it (requires_grad_(False)) or replace the module"
            )
    return found


def named_pathways(net: nn.Module) -> Iterator[tuple[str, Pathway]]:
    """Every pathway of a network under its full name, "layer.pathway"."""
    for name, (_, declaration) in declarations(net).items():
        for pathway in declaration.pathways:
            yield f"{name}.{pathway.name}" if name else pathway.name, pathway


def structure(net: nn.Module) -> list[nn.Parameter]:
    """The learnable structural parameters Θ of all layers; empty where every stack is fixed."""
    return [p for _, d in declarations(net).values() for p in d.structure if p.requires_grad]


def shaping_precisions(net: nn.Module) -> list[Tensor]:
    """Log precisions that also shape a layer's kernel, through the free pathway of a soft stack."""
    return [t for _, d in declarations(net).values() if d.stack is not None for t in d.precisions]


def starting_log_precisions(net: nn.Module) -> dict[str, Tensor]:
    """log δ by pathway as the layers declare it: a layer's own tensor (shared, not copied), else a new log 1."""
    return {
        name: p.log_precision
        if p.log_precision is not None
        else torch.zeros((), dtype=p.parameter.dtype, device=p.parameter.device)
        for name, p in named_pathways(net)
    }


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in net.modules()}
    for module in modes:
        module.training = False  # what eval() does, and may not be called on an exported program
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
