"""What a training ends with: the evidence at its weights, and the curvature that a posterior needs."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from bayesws.evidence.objective import Evidence, assemble, laplace_pass
from bayesws.evidence.surface import log_likelihood_gradient
from bayesws.training.objectives.objective import Setting, Work


@torch.no_grad()
def final_evidence(setting: Setting, work: Work) -> Evidence:
    """The evidence at the weights that the training ended with, with the whole curvature.

    Its precisions are those that the objective trained with, or, where it has none, the best for these weights.

    Raises:
        FloatingPointError: an evidence that is not finite.
    """
    exact = replace(setting.curvature, samples=None, subset=1.0)
    done = laplace_pass(setting.net, setting.data, setting.likelihood, exact, check=False)
    work.settle(done)
    evidence = assemble(setting.net, done, work.log_precisions)
    if not math.isfinite(float(evidence)):
        raise FloatingPointError("the evidence is not finite at the end of the fit: check the data's scale")
    return evidence


@torch.no_grad()
def final_posterior(setting: Setting, work: Work) -> dict[str, Tensor]:
    """Curvature and gradient at these weights: what the posterior predictive and the evidence at other precisions
    follow from.

    Raises:
        ValueError: a network whose curvature laplace-torch cannot hold.
    """
    from bayesws.evidence import laplace  # takes two seconds: `import bayesws` should not

    curvature = laplace.as_held(setting.curvature)
    fitted = laplace.fitted_posterior(setting.net, setting.data, setting.likelihood, curvature, work.log_precisions)
    gradient = log_likelihood_gradient(setting.net, setting.data, setting.likelihood)
    return laplace.curvature_tensors(fitted) | {f"gradient.{name}": g for name, g in gradient.items()}
