"""What a layer declares: its pathways, their precisions, its structure. The only thing the evidence knows of layers.

A pathway is a block of parameters with the prior N(0, δ⁻¹ I). Seen from a plain linear map of the same effective
kernel K (fan_out, fan_in), every pathway enters linearly: K = Σ_p embed_p(θ_p). Its gradient is therefore a linear map
of the kernel's gradient (`pull_back`), and its Kronecker factors follow from the kernel's own (`factors`).

A module of your own becomes a layer by one registered function:

    @declare.register
    def _(module: MyLayer) -> Declaration: ...
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Factors = list[tuple[Tensor, Tensor]]
Strength = Callable[[Mapping[str, Tensor]], Tensor]  # from log δ by pathway, (...), to ρ, (...)


@dataclass(frozen=True)
class Within:
    """That a pathway acts through some of the directions of another one: together they are φ + R θ.

    Attributes:
        outer: name of the other pathway, of φ: within the same layer; from `declarations` on, within the network.
        kappa: κ with Rᵀ R = κ I, or the least that is known with Rᵀ R ≤ κ I.
        lift: R, from θ to the shape of φ.
        lower: Rᵀ, from the shape of φ to that of θ.
        gram: gives Rᵀ R, (n, n), which acts on every n numbers of θ in their order; None where it is κ I.
        wider: of how many times as many inputs an output of φ is made: at equal precisions and white inputs, how many
            times the variance of R θ's outputs that of φ's is under the prior, in the mean, numel(φ) / tr Rᵀ R.
    """

    outer: str
    kappa: float
    lift: Callable[[Tensor], Tensor]
    lower: Callable[[Tensor], Tensor]
    gram: Callable[[], Tensor] | None = None
    wider: float = 1.0


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
        picks_entries: whether `pull_back` of a kernel's gradient only picks and orders entries, so that it is the same
            before and after they are squared: every parameter is an entry of the kernel.
        within: the pathway whose directions this one's are among; the two are accounted for jointly. None where there
            is none.
        blocks: in how many equal blocks of its rows and columns the kernel is block diagonal, one for all kernels of a
            layer; with more than one `pull_back` gets these alone, (..., blocks, rows, columns), and `factors` of A
            and B, (blocks, columns, columns) and (blocks, rows, rows).
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
    picks_entries: bool = False
    within: Within | None = None
    blocks: int = 1

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return self.parameter.numel()


@dataclass(frozen=True)
class Status:
    """What the hyperparameters Θ of a layer make at present.

    Attributes:
        value: what Θ makes, such as the matrices of a stack, or a lengthscale; how far it moves tells whether it is
            still being learned.
        converged: whether the layer's own iteration that makes it did converge.
        note: why not, in one line; empty where it did.
        residual: how far from converged it is, in the layer's own measure.
    """

    value: Tensor
    converged: bool = True
    note: str = ""
    residual: float = 0.0


@dataclass(frozen=True)
class Structure:
    """Hyperparameters Θ that shape a layer's kernel: the logits of a stack, a lengthscale.

    The evidence learns them by its whole gradient; the task loss learns them as it learns weights.

    Attributes:
        parameters: Θ; those that require a gradient are learned.
        regularisers: penalties that the task loss may put on Θ, scalars, by the name that the objective knows them by
            ("normaliser", "entropy"); empty where the layer has none.
        status: what Θ makes at present.
    """

    parameters: tuple[nn.Parameter, ...]
    regularisers: Mapping[str, Callable[[], Tensor]]
    status: Callable[[], Status]


@dataclass(frozen=True)
class Declaration:
    """What one layer tells the evidence about itself.

    Attributes:
        pathways: in the order of their parameters.
        patches: layer input (batch, ...) to (batch, fan_in, positions), the vectors that the kernel is applied to.
        responses: layer output, or its gradient, (batch, ...) to (batch, fan_out, positions).
        structure: the hyperparameters that shape its kernel; None where nothing but weights is learned.
        precisions: every log precision that is the layer's own, those of frozen pathways included.
        shaped_by_precisions: whether these precisions shape the kernel as well, so that they are hyperparameters of it.
        strength: ρ in [0, 1], how much its copies share, from the log precisions of its trained pathways by their names
            within the layer: differentiable, for any leading dimensions that these have in common. None for a layer
            without copies that share.
        part_of: name of the layer that this one is a part of; `declarations` sets it, a layer on its own has None.
    """

    pathways: tuple[Pathway, ...]
    patches: Callable[[Tensor], Tensor]
    responses: Callable[[Tensor], Tensor]
    structure: Structure | None = None
    precisions: tuple[Tensor, ...] = ()
    shaped_by_precisions: bool = False
    strength: Strength | None = None
    part_of: str | None = None


@dataclass(frozen=True)
class Joint:
    """What a container declares that makes one layer of the layers within it, such as a sum of branches.

    Attributes:
        strength: as for `Declaration`, by the pathways' names within the container ("conv.weight").
        within: by such a name, the pathway of the container that it acts within.
    """

    strength: Strength | None = None
    within: Mapping[str, Within] = field(default_factory=dict)


@singledispatch
def declare(module: nn.Module) -> Declaration | Joint | None:
    """The declaration of a layer; None for a module that declares nothing (activations, other containers, ...)."""
    return None


def declarations(net: nn.Module) -> dict[str, tuple[nn.Module, Declaration]]:
    """Every declaring module of a network by its name (the module path; "" for the network itself).

    Those within a container that declares a `Joint` know it by `part_of`; of nested ones the outermost counts.

    Raises:
        ValueError: a parameter that is trained (requires_grad) and that no layer declares, or that two declare, or that
            has no numbers.
    """
    found: dict[str, tuple[nn.Module, Declaration]] = {}
    joint: str | None = None
    places: dict[str, Within] = {}
    for name, module in net.named_modules():  # what a container holds comes right after it
        inside = joint is not None and is_within(name, joint)
        declared = declare(module)
        if isinstance(declared, Declaration):
            found[name] = (module, replace(declared, part_of=joint) if inside else declared)
        elif isinstance(declared, Joint) and not inside:
            joint = name
            places |= {_joined(name, inner): _named(place, name) for inner, place in declared.within.items()}
    _check_declared(net, found)
    trained = {_joined(name, p.name) for name, (_, declaration) in found.items() for p in declaration.pathways}
    for name, (_, declaration) in found.items():
        places |= {_joined(name, p.name): _named(p.within, name) for p in declaration.pathways if p.within}
    places = {inner: place for inner, place in places.items() if place.outer in trained}
    return {name: (module, _placed(name, declaration, places)) for name, (module, declaration) in found.items()}


def _named(place: Within, layer: str) -> Within:
    """The same, the outer pathway by its full name."""
    return replace(place, outer=_joined(layer, place.outer))


def _placed(layer: str, declaration: Declaration, places: Mapping[str, Within]) -> Declaration:
    """The same, its pathways within the others that they have a place in."""
    pathways = tuple(replace(p, within=places.get(_joined(layer, p.name))) for p in declaration.pathways)
    return replace(declaration, pathways=pathways)


def _check_declared(net: nn.Module, found: dict[str, tuple[nn.Module, Declaration]]) -> None:
    declared: set[int] = set()
    places: set[int] = set()  # in memory, which two parameters may share
    for name, (_, declaration) in found.items():
        theta = () if declaration.structure is None else declaration.structure.parameters
        if empty := next((p for p in declaration.pathways if not p.numel), None):
            raise ValueError(
                f"parameter {_joined(name, empty.name)!r} of shape {tuple(empty.parameter.shape)} is empty: expected "
                "numbers; leave its module out"
            )
        for parameter in [p.parameter for p in declaration.pathways] + list(theta):
            place = parameter.data_ptr() if parameter.numel() and not parameter.is_meta else 0
            if id(parameter) in declared or (place and place in places):
                raise ValueError(
                    f"layer {name!r} shares a parameter with another layer: expected one layer a parameter; "
                    "call one module twice instead"
                )
            declared.add(id(parameter))
            places.add(place)
        declared |= {id(t) for t in declaration.precisions}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and id(parameter) not in declared:
            module = type(net.get_submodule(name.rpartition(".")[0])).__name__
            raise ValueError(
                f"parameter {name!r} of a {module}: expected parameters of nn.Linear, nn.Conv1d/2d/3d, affine "
                "normalisation or bayesws.layers; freeze it (requires_grad_(False)) or replace the module"
            )


@dataclass(frozen=True)
class Layer:
    """A layer as people count them: a module that declares itself, or a container that is one layer (`Joint`).

    Attributes:
        name: its path in the network; "" for the network itself.
        module: the module.
        parts: what the layer, or each layer within the container, declares, by its path in the network.
        strength: ρ from the log precisions by the pathways' names within the layer, see `Declaration`; None for a layer
            without copies that share.
    """

    name: str
    module: nn.Module
    parts: dict[str, Declaration]
    strength: Strength | None = None

    @cached_property
    def pathways(self) -> dict[str, Pathway]:
        """Its trained pathways by their names within the layer, such as "weight", "shared" or "conv.weight"."""
        full = {_joined(part, p.name): p for part, declared in self.parts.items() for p in declared.pathways}
        return {name.removeprefix(_joined(self.name, "")): pathway for name, pathway in full.items()}

    @property
    def structures(self) -> dict[str, Structure]:
        """What shapes the kernels of its parts, by the parts' paths in the network; empty where nothing does."""
        return {part: declared.structure for part, declared in self.parts.items() if declared.structure is not None}

    @property
    def precisions(self) -> tuple[Tensor, ...]:
        """Every log precision that is the layer's own."""
        return tuple(t for declared in self.parts.values() for t in declared.precisions)

    def full_name(self, pathway: str) -> str:
        """The pathway's name within the network."""
        return _joined(self.name, pathway)

    def sharing_pathways(self) -> tuple[str, ...]:
        """The trained pathways whose precisions decide the strength: two or more where the data can tell it."""
        if self.strength is None:
            return ()
        logs = {name: torch.zeros((), requires_grad=True) for name in self.pathways}
        with torch.enable_grad():
            rho = self.strength(logs)
        if not logs or not rho.requires_grad:
            return ()
        found = torch.autograd.grad(rho, list(logs.values()), allow_unused=True)
        return tuple(name for name, gradient in zip(logs, found, strict=True) if gradient is not None)


def layers_of(net: nn.Module) -> dict[str, Layer]:
    """Every layer of a network by its name, in the order of its modules.

    >>> {name: list(layer.pathways) for name, layer in layers_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU())).items()}
    {'0': ['weight', 'bias']}

    Raises:
        ValueError: as `declarations`.
    """
    parts: dict[str, dict[str, Declaration]] = {}
    for name, (_, declaration) in declarations(net).items():
        whole = name if declaration.part_of is None else declaration.part_of
        parts.setdefault(whole, {})[name] = declaration
    found = {}
    for name, declared in parts.items():
        module = net.get_submodule(name)
        own = declare(module)
        found[name] = Layer(name, module, declared, None if own is None else own.strength)
    return found


def named_pathways(net: nn.Module) -> Iterator[tuple[str, Pathway]]:
    """Every pathway of a network under its full name, "layer.pathway"."""
    for name, (_, declaration) in declarations(net).items():
        for pathway in declaration.pathways:
            yield _joined(name, pathway.name), pathway


def structures(net: nn.Module) -> dict[str, Structure]:
    """What shapes kernels, by the names of the modules that declare it; empty where nothing but weights is learned."""
    return {name: d.structure for name, (_, d) in declarations(net).items() if d.structure is not None}


def structure(net: nn.Module) -> list[nn.Parameter]:
    """The learnable structural parameters Θ of all layers; empty where every stack is fixed."""
    return [p for found in structures(net).values() for p in found.parameters if p.requires_grad]


def shaping_precisions(net: nn.Module) -> list[Tensor]:
    """Log precisions that also shape a layer's kernel, as those of a soft stack through its free pathway."""
    return [t for _, d in declarations(net).values() if d.shaped_by_precisions for t in d.precisions]


def starting_log_precisions(net: nn.Module) -> dict[str, Tensor]:
    """log δ by pathway as the layers declare it: a layer's own tensor (shared, not copied), else a new log 1."""
    return {
        name: p.log_precision
        if p.log_precision is not None
        else torch.zeros((), dtype=p.parameter.dtype, device=p.parameter.device)
        for name, p in named_pathways(net)
    }


def is_within(name: str, container: str) -> bool:
    """Whether a module's path lies within a container's, "" being the network itself."""
    return name != container and name.startswith(_joined(container, ""))


def _joined(layer: str, name: str) -> str:
    """ "layer.name"; the name alone where the layer is the network itself."""
    return f"{layer}.{name}" if layer else name


def called_with(net: nn.Module, tensors: Mapping[str, Tensor], *inputs: Any) -> Any:
    """What a network gives with other tensors in the place of some of its parameters, given by name.

    As torch.func.functional_call, which leaves the new tensors in a module that the network has under two names.
    """
    given = {id(net.get_parameter(name)): tensor for name, tensor in tensors.items()}
    places = {
        f"{path}.{name}" if path else name: given[id(parameter)]
        for path, module in net.named_modules()  # each module once
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in given
    }
    return functional_call(net, places, inputs, tie_weights=False)


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


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters take no gradient, so no optimiser moves them or remembers anything of them."""
    taken = [p for p in parameters if p.requires_grad]
    for parameter in taken:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in taken:
            parameter.requires_grad_(True)
