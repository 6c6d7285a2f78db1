"""What a training ends with: the evidence at its weights, and the curvature that a posterior needs."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bayesws.evidence.by_default import Size, columns_of, full_curvature, parameters_of
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.memory import refuse_what_does_not_fit
from bayesws.evidence.objective import Evidence, assemble, laplace_pass
from bayesws.evidence.surface import log_likelihood_gradient
from bayesws.evidence.thinning import rows_of
from bayesws.layers.contract import declarations
from bayesws.training.objectives.objective import Setting, Work


@torch.no_grad()
def final_evidence(setting: Setting, work: Work) -> Evidence:
    """The evidence at the weights that the training ended with, with the curvature of `final_curvature`; by Kronecker
    factors where its sampled rows are too few for these data (`Evidence.saturated`).

    Its precisions are those that the objective trained with, or, where it has none, the best for these weights.

    Raises:
        FloatingPointError: an evidence that is not finite.
    """
    evidence = _settled(setting, work, final_curvature(setting))
    if evidence.saturated:
        evidence = _settled(setting, work, Curvature("kron"))
    if not math.isfinite(float(evidence)):
        raise FloatingPointError("the evidence is not finite at the end of the fit: check the data's scale")
    return evidence


def _settled(setting: Setting, work: Work, curvature: Curvature) -> Evidence:
    """The evidence by a curvature, at the precisions that the objective settles on by it."""
    done = laplace_pass(setting.net, setting.data, setting.likelihood, curvature, check=False)
    work.settle(done)
    return assemble(setting.net, done, work.log_precisions)


@torch.no_grad()
def final_curvature(setting: Setting) -> Curvature:
    """All columns and all data of the fit's curvature, so that nothing is drawn.

    But "full" with sampled columns keeps them, their seed and its rows where the exact determinant costs too much: see
    `by_default.full_curvature`.
    """
    curvature = setting.curvature
    if curvature.kind == "full" and curvature.samples is not None and _affordable(setting) != Curvature("full"):
        return replace(curvature, subset=1.0)
    return curvature.exact()


@torch.no_grad()
def final_posterior(setting: Setting, work: Work, curvature: Curvature) -> dict[str, Tensor]:
    """Curvature and gradient at these weights: what the posterior predictive and the evidence at other precisions
    follow from.

    Args:
        setting, work: of the fit.
        curvature: as near to it as laplace-torch can hold one.

    Raises:
        ValueError: a network whose curvature laplace-torch cannot hold.
    """
    from bayesws.evidence import laplace  # takes two seconds: `import bayesws` should not

    held = laplace.as_held(curvature)
    refuse_what_does_not_fit(declarations(setting.net), held)  # it holds H itself
    fitted = laplace.fitted_posterior(setting.net, setting.data, setting.likelihood, held, work.log_precisions)
    gradient = log_likelihood_gradient(setting.net, setting.data, setting.likelihood)
    return laplace.curvature_tensors(fitted) | {f"gradient.{name}": g for name, g in gradient.items()}


@torch.no_grad()
def judging_curvature(setting: Setting) -> Curvature:
    """The curvature by which the starts of a fit are compared: "full", or what memory holds.

    All columns, or as many sampled ones a datum as `by_default.full_curvature` says, with the seed of the fit's
    curvature: the same signs for every start. Where no memory holds it, that which the fit ends with.
    """
    affordable = _affordable(setting) or Curvature("full", samples=1)
    asked = affordable if affordable.samples is None else replace(affordable, seed=setting.curvature.seed)
    try:
        rows = partial(rows_of, setting.net, setting.data, setting.likelihood, asked)
        refuse_what_does_not_fit(declarations(setting.net), asked, rows)
    except ValueError:
        return final_curvature(setting)
    return asked


@torch.no_grad()
def judge(setting: Setting, work: Work, curvature: Curvature) -> Evidence:
    """The evidence of a start at its own final weights and precisions, by a curvature: after `final_evidence`.

    Raises:
        FloatingPointError: an evidence that is not finite.
    """
    done = laplace_pass(setting.net, setting.data, setting.likelihood, curvature, check=False)
    found = assemble(setting.net, done, work.log_precisions)
    if not math.isfinite(float(found)):
        raise FloatingPointError("the evidence that compares the starts is not finite: check the data's scale")
    return found


def _affordable(setting: Setting) -> Curvature | None:
    """The exact curvature that can be afforded; a stream counts as one column a datum."""
    x, net = setting.data.example(), setting.net
    if x is None:
        return full_curvature(Size(parameters_of(net), parameters_of(net)), len(setting.data), 1)
    return full_curvature(Size.of(net, x), len(setting.data), columns_of(net, x, setting.likelihood))
