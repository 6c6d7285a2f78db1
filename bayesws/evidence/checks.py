"""What a network must keep to for its evidence to be right: held against autograd, on a few data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from bayesws.evidence.accumulators import named
from bayesws.evidence.capture import Forward, LayerIO, Layers, jacobian_rows, run_forward
from bayesws.evidence.networks import outputs_of
from bayesws.layers.contract import Declaration, Pathway, called_with, evaluating

FEW = 8  # data that are looked at


def check_network(net: nn.Module, layers: Layers, few: Tensor) -> None:
    """Hold a network against what its evidence takes for granted, on a few data.

    Its outputs are the same every time. Those of a datum depend on that datum alone. They depend on the parameters
    through their layers' own calls alone, every call that they depend on by its gradient, and for every datum the
    gradient of every parameter is the one that these calls explain.

    Raises:
        ValueError: which of these it breaks, by what, and what to do.
    """
    if found := next((name for name, (_, p) in named(layers).items() if p.parameter.is_complex()), None):
        raise ValueError(f"parameter {found!r} is complex: expected real ones; use its real and imaginary parts")
    with evaluating(net), torch.enable_grad():  # as for the gradients below: what is derived once serves all of it
        outputs = outputs_of(net, few.clone()).detach()
        _check_same_again(net, few, outputs)
        if len(few) > 1 and differ_alone(net, few, outputs):
            refuse_mixing(net)
        forward = run_forward(net, layers, few.clone())
        check_uses(forward, layers)
        _check_hidden_uses(net, layers, few, forward)
        probe = random_probe(forward.flat, torch.Generator().manual_seed(0))
        for datum in (None, len(few) // 2):
            _check_gradients(net, layers, few, forward, probe, datum)


def check_whole_batch(net: nn.Module, layers: Layers, x: Tensor) -> None:
    """Hold a whole batch against what `check_network` holds a few data: what mixes large batches alone.

    Raises:
        ValueError: outputs of some data whose gradient reaches what the layers make of others.
    """
    with evaluating(net):
        forward = run_forward(net, layers, x.clone())
        rows = torch.arange(0, len(x), 2, device=x.device)
        if any(reach_beside(forward, layers, rows, torch.Generator().manual_seed(0))):
            refuse_mixing(net)


def check_uses(forward: Forward, layers: Layers) -> None:
    """Refuse a parameter whose way to the outputs, in autograd's graph, does not lead through a call of its layer.

    A few lookups for every operation outside of the layers: cheap enough for every batch.
    """
    if not forward.flat.requires_grad:
        return
    calls: dict[Node, list[Node]] = {}  # by where a call's output stands: where its arguments came from
    for heard in forward.calls.values():
        for output, sources in zip(heard.outputs, heard.sources, strict=True):
            if not output.is_inference():  # which stands nowhere in the graph
                calls[get_gradient_edge(output).node] = sources
    met: set[Node] = set()
    ahead = [get_gradient_edge(forward.flat).node]
    while ahead:
        node = ahead.pop()
        if node not in met:
            met.add(node)
            further = calls.get(node)
            ahead.extend([n for n, _ in node.next_functions if n is not None] if further is None else further)
    for name, (_, pathway) in named(layers).items():
        if get_gradient_edge(pathway.parameter).node in met:
            _refuse_use(name)


def check_reached(
    net: nn.Module,
    layers: Layers,
    few: Tensor,
    forward: Forward,
    by_call: Mapping[str, Sequence[Tensor | None]],
) -> None:
    """Refuse a call that the outputs depend on, and that their gradient does not reach."""
    for name, (layer, _) in named(layers).items():
        if None not in by_call.get(layer, []):
            continue
        missed = iter([gradient is None for gradient in by_call[layer]])

        def moved(called: str, output: Tensor, layer: str = layer, missed: Iterator[bool] = missed) -> Tensor:
            return _changed(output) if called == layer and next(missed, False) else output

        with _replacing(layers, moved):
            outputs = net(few.clone())
        if not torch.equal(outputs.nan_to_num(), forward.outputs.nan_to_num()):
            raise ValueError(
                f"the outputs depend on parameter {name!r}, but its gradient does not reach them: expected no "
                "torch.no_grad, detach or reentrant checkpointing on the way; use checkpoint(..., use_reentrant=False),"
                " or freeze the parameter"
            )


def random_probe(flat: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction in the outputs of every datum, (batch, C): of order one, so that nothing cancels for long."""
    return torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)


def gradients_of(
    forward: Forward, layers: Layers, probe: Tensor
) -> tuple[dict[str, list[Tensor | None]], dict[str, Tensor | None]]:
    """Of the outputs along a probe: gradients in every call's output, by layer, and in every parameter, by pathway.

    None where autograd does not get there.
    """
    outputs = [output for heard in forward.calls.values() for output in heard.outputs]
    pathways = named(layers)
    if not forward.flat.requires_grad:
        return {name: [None] * len(heard.outputs) for name, heard in forward.calls.items()}, dict.fromkeys(pathways)
    wanted = [o for o in outputs if not o.is_inference()]
    wanted += [pathway.parameter for _, pathway in pathways.values()]
    # a derived kernel's graph serves the walk to its end
    found = iter(torch.autograd.grad(forward.flat, wanted, probe, retain_graph=True, allow_unused=True))
    by_call = {
        name: [None if o.is_inference() else next(found) for o in heard.outputs]
        for name, heard in forward.calls.items()
    }
    return by_call, dict(zip(pathways, found, strict=True))


def unexplained(
    forward: Forward,
    layers: Layers,
    by_call: Mapping[str, Sequence[Tensor | None]],
    truths: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """By pathway, whether its gradient differs from what its layer's calls, and their gradients, make of it."""
    found = {}
    with torch.no_grad():
        for name, (layer, pathway) in named(layers).items():
            declaration, heard = layers[layer][1], None
            if layer in forward.calls:
                pairs = zip(by_call[layer], forward.calls[layer].outputs, strict=True)
                gradients = [(torch.zeros_like(o) if g is None else g).unsqueeze(0) for g, o in pairs]
                heard = (forward.calls[layer], gradients)
            found[name] = _differs(declaration, pathway, heard, truths[name])
    return found


def differ(found: Tensor, expected: Tensor) -> Tensor:
    """Whether two ways to the same numbers, that may round otherwise, differ: far above what rounding does."""
    if not (expected.is_floating_point() or expected.is_complex()):
        return (found != expected).any()
    # sums in another order, deep in a network or in a narrower type: 1e-3 relative in float32, 1e-6 in float64
    tolerance = torch.finfo(expected.dtype).eps ** 0.4
    return (found - expected).nan_to_num().norm() > tolerance * expected.nan_to_num().norm()


def reach_beside(forward: Forward, layers: Layers, rows: Tensor, generator: torch.Generator) -> list[Tensor]:
    """By call, whether the gradient of some data's outputs reaches what the layers make of the other data."""
    probe = random_probe(forward.flat, generator)
    own = torch.zeros_like(probe)
    own[rows] = probe[rows]
    by_call, _ = gradients_of(forward, layers, own)
    return _strays(by_call, rows)


def differ_alone(net: nn.Module, x: Tensor, outputs: Tensor) -> Tensor:
    """Whether a datum gives other outputs by itself than those (batch, ...) that it gave beside others."""
    try:
        alone = torch.cat([net(datum.clone()).detach() for datum in x.split(1)])
    except RuntimeError:  # a network for one batch size
        return torch.tensor(False, device=outputs.device)
    except ValueError:  # torch's normalisations: one value has no variance
        return torch.tensor(True, device=outputs.device)
    if alone.shape != outputs.shape:
        return torch.tensor(True, device=outputs.device)
    return differ(alone, outputs)


def refuse_unexplained(layers: Layers, name: str) -> NoReturn:
    """Raise for a pathway whose gradient its layer's calls do not explain."""
    module = type(layers[named(layers)[name][0]][0]).__name__
    raise ValueError(
        f"parameter {name!r} acts otherwise than its layer's calls explain: expected its {module} to compute what it "
        "declares; register a declaration of its own for a changed module, or freeze the parameter"
    )


def refuse_mixing(net: nn.Module) -> NoReturn:
    """Raise for a network whose outputs for a datum depend on others."""
    raise ValueError(
        f"this {type(net).__name__} gives other outputs for a datum by itself than beside another: expected each "
        "datum's output to depend on that datum alone; nothing may mix the batch (a mean over it, attention across "
        "it, normalisation without running statistics)"
    )


def _check_same_again(net: nn.Module, x: Tensor, outputs: Tensor) -> None:
    if not torch.equal(net(x.clone()).detach().nan_to_num(), outputs.nan_to_num()):  # what is not finite, others tell
        raise ValueError(
            f"this {type(net).__name__} gives other outputs for the same inputs: expected the same every time in eval "
            "mode; use nn.Dropout, or functional dropout with training=self.training"
        )


def _check_hidden_uses(net: nn.Module, layers: Layers, few: Tensor, forward: Forward) -> None:
    """Given what the layers' calls gave, the outputs must not depend on the parameters: not detached either."""
    own = {id(parameter): name for name, parameter in net.named_parameters()}
    changed = {name: (own[id(p.parameter)], _changed(p.parameter)) for name, (_, p) in named(layers).items()}

    def depends_on(names: Iterable[str]) -> bool:
        with _giving(layers, forward):
            outputs = called_with(net, dict(changed[name] for name in names), few.clone())
        return not torch.equal(outputs.nan_to_num(), forward.outputs.nan_to_num())

    if changed and depends_on(changed):
        _refuse_use(next((name for name in changed if depends_on([name])), next(iter(changed))))


def _check_gradients(
    net: nn.Module, layers: Layers, few: Tensor, forward: Forward, probe: Tensor, datum: int | None
) -> None:
    """Hold the gradients of all outputs, or of those of one datum, against what the layers' calls explain."""
    if datum is not None:
        probe = probe * (torch.arange(len(few), device=few.device) == datum).unsqueeze(-1)
    by_call, truths = gradients_of(forward, layers, probe)
    check_reached(net, layers, few, forward, by_call)
    if datum is not None:
        if any(_strays(by_call, datum)):
            refuse_mixing(net)
    for name, wrong in unexplained(forward, layers, by_call, truths).items():
        if wrong:
            refuse_unexplained(layers, name)


def _strays(by_call: Mapping[str, Sequence[Tensor | None]], rows: Tensor | int) -> list[Tensor]:
    """By call, whether a gradient has more than the rows of some data."""
    found = []
    for gradient in (g for gradients in by_call.values() for g in gradients if g is not None):
        kept = torch.zeros_like(gradient)
        kept[rows] = gradient[rows]
        found.append(differ(kept, gradient))
    return found


@contextmanager
def _giving(layers: Layers, forward: Forward) -> Iterator[None]:
    """Within the block the layers' calls give what they gave on a batch's way forward, and compute nothing."""
    before = {module: module.__dict__.get("forward") for module, _ in layers.values()}
    for name, (module, _) in layers.items():
        if name in forward.calls:
            remaining = iter([output.detach().clone() for output in forward.calls[name].outputs])

            def again(
                *given: Any, own: Any = module.forward, remaining: Iterator[Tensor] = remaining, **by: Any
            ) -> Any:
                output = next(remaining, None)
                return own(*given, **by) if output is None else output

            module.__dict__["forward"] = again
    try:
        yield
    finally:
        for module, own in before.items():
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


@contextmanager
def _replacing(layers: Layers, replace: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Within the block every layer's call gives what `replace` makes of the layer's name and its output."""
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: replace(name, output), prepend=True)
        for name, (module, _) in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changed(values: Tensor) -> Tensor:
    """Other values, that require a gradient: without one torch takes other ways, which call no layer."""
    return (1.5 * values + 0.1).detach().requires_grad_()


def _differs(
    declaration: Declaration, pathway: Pathway, heard: tuple[LayerIO, list[Tensor]] | None, truth: Tensor | None
) -> Tensor:
    """Whether a pathway's gradient is not what its layer's calls, and their output gradients, make of it."""
    found: Tensor = torch.zeros_like(pathway.parameter)
    terms = found.norm()
    if heard is not None:
        calls, gradients = heard
        # the data side by side as if they were positions of one: no row of its own for each
        patches = calls.patches(declaration).movedim(0, -1).flatten(1)[None]
        responses = calls.responses(declaration, gradients).movedim(1, -1).flatten(2).unsqueeze(1)
        found = jacobian_rows(pathway, patches, responses).sum((0, 1)).reshape(pathway.parameter.shape)
        # a normalised input is of order one: where it is smaller, a difference that cancelled
        sizes = patches.abs().clamp(min=1) if pathway.acts == "scale" else patches.abs()
        terms = jacobian_rows(pathway, sizes, responses.abs()).sum((0, 1)).norm()
    expected = torch.zeros_like(found) if truth is None else truth
    # Where the terms of a gradient cancel, as for a bias that a normalisation takes out again, only half of the digits
    # of the terms are held; a few more where they do not. A use that was not seen is far above.
    half_of_digits = torch.finfo(found.dtype).eps ** 0.5
    size = torch.maximum(expected.norm(), found.norm())
    return (found - expected).norm() > half_of_digits * (30 * size + terms)


def _refuse_use(name: str) -> NoReturn:
    raise ValueError(
        f"parameter {name!r} acts outside its layer's own calls (tied to another layer, or used by a function): "
        "expected every use to be a call of the module; call the module, or freeze the parameter"
    )
