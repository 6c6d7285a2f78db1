"""Jacobian rows and Kronecker factors of one batch, parameter by parameter: for those who do the summing themselves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesws.evidence.accumulators import accumulators_for, named
from bayesws.evidence.capture import Forward, Layers, output_gradients, run_forward
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.gathering import COLUMNS_AT_ONCE
from bayesws.evidence.hessian import DenseBlock, Hessian, Spectra
from bayesws.evidence.kronecker import KroneckerAccumulator
from bayesws.evidence.rows import RowAccumulator
from bayesws.evidence.sampling import Draw
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import Factors, declarations

Probes = Callable[[Tensor], Tensor]  # outputs (batch, ...) to S (batch, C, columns)


def batch_jacobians(
    net: nn.Module, params: Sequence[nn.Parameter], x: Any, probes: Probes, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """Outputs (batch, ...) and Sᵀ J, (columns, batch, P), columns of J in the order of `params`.

    Args:
        net: the network, in eval mode.
        params: pathways' parameters; those of layers that are not called have zeros.
        x: (batch, ...).
        probes: gives S.
        create_graph: whether the rows are to be differentiable.

    Raises:
        ValueError: inputs that are not a tensor, parameters that nothing declares.
    """
    with computed_once(net):
        layers, forward, outputs = _forward(net, x, create_graph)
        pathways = named(layers)
        source = RowAccumulator(layers, pathways)
        with torch.set_grad_enabled(create_graph):
            source.add_inputs(forward.calls, WHOLE)
            parts = []
            for gradients in output_gradients(forward, probes(outputs), create_graph, COLUMNS_AT_ONCE):
                found = source.rows(forward.calls, gradients)
                rows = {id(pathways[name][1].parameter): value for name, value in found.items()}
                columns = len(next(iter(found.values()))) if found else 1
                parts.append(torch.cat([_or_zeros(rows, p, columns, len(x)) for p in params], -1))
            return outputs, torch.cat(parts)


def batch_factors(
    net: nn.Module,
    params: Sequence[nn.Parameter],
    x: Any,
    examples: int,
    probes: Probes,
    create_graph: bool,
    kfac: str = "expand",
) -> tuple[Tensor, list[Factors]]:
    """Outputs and, for each of `params`, the batch's share of the blocks (A, B) of `examples` data.

    The shares of all batches sum up to the factors: A is divided by the number of examples and of positions. A factor
    on the elements of a normalised input has its exact block as B, and the number 1 as A.

    Args:
        net, params, x, probes, create_graph: as for `batch_jacobians`.
        examples: how many data there are in all.
        kfac: "expand" or "reduce".
    """
    with computed_once(net):
        layers, forward, outputs = _forward(net, x, create_graph)
        pathways, accumulators = named(layers), accumulators_for(Curvature("kron", kfac), layers)
        with torch.set_grad_enabled(create_graph):
            for accumulator in accumulators:
                accumulator.add_inputs(forward.calls, WHOLE)
            for gradients in output_gradients(forward, probes(outputs), create_graph, COLUMNS_AT_ONCE):
                for accumulator in accumulators:
                    accumulator.add_gradients(forward.calls, gradients)
            found: dict[int, Factors] = {}
            for accumulator in accumulators:
                if isinstance(accumulator, KroneckerAccumulator):
                    for name, blocks in accumulator.factors(accumulator.sums).items():
                        pathway = pathways[name][1]
                        share = len(x) / examples if pathway.acts == "kernel" else 1.0
                        found[id(pathway.parameter)] = [(share * a, b) for a, b in blocks]
                    continue
                for name, block in _dense_blocks(accumulator.hessian(accumulator.sums)).items():
                    found[id(pathways[name][1].parameter)] = [(block.new_ones(1, 1), block)]
    return outputs, [found[id(p)] if id(p) in found else _no_factors(p) for p in params]


WHOLE = Draw(torch.arange(0), -1, None)  # nothing is random about the batch


def _dense_blocks(hessian: Hessian | None) -> dict[str, Tensor]:
    """The block of H of every pathway, where each has one of its own that is dense or diagonal."""
    if isinstance(hessian, Spectra):
        return {name: torch.diag(values) for name, values in hessian.eigenvalues.items()}
    return {name: hessian.matrix for name in hessian.sizes} if isinstance(hessian, DenseBlock) else {}


def _forward(net: nn.Module, x: Any, create_graph: bool) -> tuple[Layers, Forward, Tensor]:
    if not isinstance(x, Tensor):
        raise ValueError(f"inputs of type {type(x).__name__}: expected a tensor")
    layers = declarations(net)
    forward = run_forward(net, layers, x)
    return layers, forward, forward.outputs if create_graph else forward.outputs.detach()


def _or_zeros(rows: dict[int, Tensor], parameter: nn.Parameter, columns: int, batch: int) -> Tensor:
    found = rows.get(id(parameter))
    return parameter.new_zeros(columns, batch, parameter.numel()) if found is None else found


def _no_factors(parameter: nn.Parameter) -> Factors:
    """Zeros for a layer that was not called."""
    rows = len(parameter)
    columns = parameter.numel() // rows
    return [(parameter.new_zeros(columns, columns), parameter.new_zeros(rows, rows))]
