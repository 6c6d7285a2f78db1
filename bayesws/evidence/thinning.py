"""How many rows the determinant in function space has, and which data they are of where there are too many."""

import torch
from torch import Tensor, nn

from bayesws.evidence.batches import Batches
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.likelihood import Likelihood
from bayesws.evidence.networks import outputs_of
from bayesws.evidence.sampling import Thinned, sampled_batches
from bayesws.evidence.shapes import numbers_in_a_row, shapes_of
from bayesws.layers.cache import computed_once
from bayesws.layers.contract import declarations, evaluating

FLOOR = 0.1  # of the mean Hessian, for every datum: no weight is above √(1 + 1 / FLOOR) times that of equal chances
OWN_STREAM = 0x5DEECE66  # what is drawn here shares no stream with the signs of the same seed


def root_of(net: nn.Module, x: Tensor, likelihood: Likelihood) -> Tensor:
    """S (batch, C, columns) of some data at the network's outputs, without a graph."""
    with evaluating(net), computed_once(net), torch.enable_grad():  # so that what is computed once serves a walk, too
        outputs = outputs_of(net, x)
    return likelihood.hessian_root(outputs.detach()).detach()


def rows_for(curvature: Curvature, data: int, columns: int) -> int:
    """R, the rows of so many data: one for every column, or for every sampled one of the data that are drawn."""
    looked_at = max(1, round(curvature.subset * data))
    if curvature.samples is None:
        return looked_at * columns
    return min(looked_at, curvature.rows) * curvature.samples


def rows_of(net: nn.Module, data: Batches, likelihood: Likelihood, curvature: Curvature) -> tuple[int, int] | None:
    """The same of these data, and how many numbers a row is held as.

    None where the number of data, or what a datum has, cannot be told beforehand.
    """
    x = data.first()
    if data.total < 0 or x is None:
        return None
    layers = declarations(net)
    columns = root_of(net, x, likelihood).shape[-1] if curvature.samples is None else 0
    return rows_for(curvature, data.total, columns), numbers_in_a_row(layers, shapes_of(net, layers, x)[0])


def thinned(net: nn.Module, data: Batches, likelihood: Likelihood, curvature: Curvature) -> Thinned | None:
    """Which data have rows, by place; None where all have.

        π_n = min(1, M w_n / Σ w)    w_n = tr S_n S_nᵀ + 0.1 · mean    E[Σ_n [n drawn] π_n⁻¹ ĵ_n ĵ_nᵀ] = Σ_n ĵ_n ĵ_nᵀ

    with M = curvature.rows; of class probabilities tr S Sᵀ = 1 - ‖p‖². Every datum is drawn or not by itself, by one
    uniform number u of its place (Poisson sampling), so about M are; in any batches the same. At u > π_n / 2 it is of
    the second half: each half is drawn as the whole is, with half of its chances.

    Raises:
        ValueError: a part of the data, as π_n depends on the whole.
    """
    if curvature.kind != "full" or curvature.samples is None or 0 <= data.total <= curvature.rows:
        return None
    if data.length != data.total:
        raise ValueError(
            f"{data.length} of {data.total} data, of which rows={curvature.rows} are drawn: expected all of them, as a "
            f"row's weight depends on the whole; use rows={data.total} or more"
        )
    traces = [root_of(net, x, likelihood).square().sum((1, 2)).cpu() for x, _, _ in sampled_batches(data, curvature)]
    w = torch.cat(traces).double()
    if len(w) <= curvature.rows:
        return None
    w = w + FLOOR * w.mean()
    chances = (curvature.rows * w / w.sum()).clamp(max=1)
    generator = torch.Generator().manual_seed(curvature.seed ^ OWN_STREAM)
    u = torch.rand(len(w), dtype=torch.float64, generator=generator)
    return Thinned(torch.where(u < chances, chances.rsqrt(), 0.0), u > chances / 2)
