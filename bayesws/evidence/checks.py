"""What a network must keep to for its evidence to be right: held against autograd, on a few data."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesws.evidence.capture import LayerIO, Layers, jacobian_rows, output_gradients, run_forward
from bayesws.layers.contract import Declaration, Pathway, evaluating

# Relative: float32 through a deep network is well below, a use that was not seen far above. Where the terms of a
# gradient cancel, as for a bias that a normalisation takes out again, only half of the digits of the terms are held.
CONSISTENT = 1e-2
FEW = 2  # data that are looked at
SAME = 1e-3  # relative: outputs of one datum, by itself and beside another; float32 is far below


def check_network(net: nn.Module, layers: Layers, x: Tensor) -> None:
    """Hold a network against what its evidence takes for granted, on the first data of a batch.

    Its outputs are the same every time. Those of a datum depend on that datum alone. The gradient of every parameter
    that they depend on reaches them, and is the one that its layer's own calls explain.

    Raises:
        ValueError: which of these it breaks, by what, and what to do.
    """
    few = x[:FEW]
    with evaluating(net), torch.enable_grad():  # as for the gradients below: what is derived once serves all of it
        outputs = net(few.clone()).detach()  # a network may write into what it is given
        _check_same_again(net, few, outputs)
        _check_alone(net, few, outputs)
    _check_gradients(net, layers, few.clone())


def _check_same_again(net: nn.Module, x: Tensor, outputs: Tensor) -> None:
    if not torch.equal(net(x.clone()).detach().nan_to_num(), outputs.nan_to_num()):  # what is not finite, others tell
        raise ValueError(
            f"this {type(net).__name__} gives other outputs for the same inputs: expected the same every time in eval "
            "mode; use nn.Dropout, or functional dropout with training=self.training"
        )


def _check_alone(net: nn.Module, x: Tensor, outputs: Tensor) -> None:
    if len(x) < FEW:
        return
    try:
        alone: Tensor | None = torch.cat([net(x[i : i + 1].clone()).detach() for i in range(len(x))])
    except RuntimeError:  # a network for one batch size
        return
    except ValueError:  # torch's normalisations: one value has no variance
        alone = None
    if alone is None or alone.shape != outputs.shape or (alone - outputs).norm() > SAME * outputs.norm():
        raise ValueError(
            f"this {type(net).__name__} gives other outputs for a datum by itself than beside another: expected each "
            "datum's output to depend on that datum alone; nothing may mix the batch (a mean over it, attention across "
            "it, normalisation without running statistics)"
        )


def _check_gradients(net: nn.Module, layers: Layers, x: Tensor) -> None:
    forward = run_forward(net, layers, x)
    flat = forward.flat
    pathways = {_full(layer, p): (layer, p) for layer, (_, d) in layers.items() for p in d.pathways}
    if not pathways:
        return
    truths: tuple[Tensor | None, ...] = (None,) * len(pathways)
    if flat.requires_grad:
        probe = torch.linspace(-1.0, 1.0, flat.numel(), dtype=flat.dtype, device=flat.device).reshape(flat.shape)
        wanted = [pathway.parameter for _, pathway in pathways.values()]
        truths = torch.autograd.grad(flat, wanted, probe, retain_graph=True, allow_unused=True)
        with torch.no_grad():
            gradients = next(output_gradients(forward, probe.unsqueeze(-1), False, 1))
            for (name, (layer, pathway)), truth in zip(pathways.items(), truths, strict=True):
                heard = (forward.calls[layer], gradients[layer]) if layer in forward.calls else None
                if not _explained(layers[layer][1], pathway, heard, truth):
                    raise ValueError(
                        f"parameter {name!r} acts outside its layer's own calls (tied to another layer, or used by a "
                        "function): expected every use to be a call of the module; call the module, or freeze the "
                        "parameter"
                    )
    for (name, (_, pathway)), reached in zip(pathways.items(), truths, strict=True):
        if reached is None and _moves(net, x, pathway.parameter):
            raise ValueError(
                f"the outputs depend on parameter {name!r}, but its gradient does not reach them: expected no "
                "torch.no_grad, detach or reentrant checkpointing on the way; use checkpoint(..., use_reentrant=False),"
                " or freeze the parameter"
            )


def _explained(
    declaration: Declaration, pathway: Pathway, heard: tuple[LayerIO, list[Tensor]] | None, truth: Tensor | None
) -> bool:
    """Whether a pathway's gradient is what its layer's calls, and their output gradients, make of it."""
    found: Tensor = torch.zeros_like(pathway.parameter)
    terms = 0.0
    if heard is not None:
        calls, gradients = heard
        patches, responses = calls.patches(declaration), calls.responses(declaration, gradients)
        found = jacobian_rows(pathway, patches, responses).sum((0, 1)).reshape(pathway.parameter.shape)
        # a normalised input is of order one: where it is smaller, a difference that cancelled
        sizes = patches.abs().clamp(min=1) if pathway.acts == "scale" else patches.abs()
        terms = jacobian_rows(pathway, sizes, responses.abs()).sum((0, 1)).norm().item()
    expected = torch.zeros_like(found) if truth is None else truth
    size = torch.maximum(expected.norm(), found.norm())
    rounding = torch.finfo(found.dtype).eps ** 0.5 * terms
    return not bool((found - expected).norm() > CONSISTENT * size + rounding)


@torch.no_grad()
def _moves(net: nn.Module, x: Tensor, parameter: nn.Parameter) -> bool:
    """Whether the outputs change with a parameter."""
    name = next(name for name, p in net.named_parameters() if p is parameter)
    with evaluating(net):
        changed = functional_call(net, {name: 1.5 * parameter + 0.1}, (x.clone(),))
        return not torch.equal(net(x.clone()), changed)


def _full(layer: str, pathway: Pathway) -> str:
    return f"{layer}.{pathway.name}" if layer else pathway.name
