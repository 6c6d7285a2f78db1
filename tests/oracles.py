"""Brute-force truths: what the library computes by shortcuts, computed here the long way, in float64.

Nothing here uses the library's curvature, patches, responses, pull-backs or factors.
"""

import math
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import multivariate_normal
from torch import nn
from torch.func import functional_call, jacrev, vmap

from bayesws.layers import GroupConv2d, GroupHead, Linear2d, SparseConv2d, WeightSharing, WSLinear
from bayesws.layers.factored import GroupedLinear, Offset2d
from bayesws.layers.weight_sharing import RESIDUAL_JITTER

# Outputs and their Hessians


def softmax_hessian(outputs):
    """diag(p) - p pᵀ for every datum, (batch, C, C); 1 - p as the sum of the others: p may be near 1."""
    others = 1 - torch.eye(outputs.shape[-1], dtype=outputs.dtype)
    return torch.stack([torch.diag(p * (others @ p)) - torch.outer(p, p) * others for p in outputs.softmax(-1)])


def gaussian_hessian(noise):
    """I / σ² for every datum."""

    def hessian(outputs):
        return torch.stack([torch.eye(row.numel(), dtype=row.dtype) / noise**2 for row in outputs])

    return hessian


def log_probability(outputs, targets, noise=None):
    """log p(y | f) in nats by loops: softmax where noise is None, else a normal density."""
    if noise is None:
        return sum(f[y] - torch.logsumexp(f, 0) for f, y in zip(outputs, targets, strict=True))
    return torch.distributions.Normal(outputs, noise).log_prob(targets).sum()


# The dense generalised Gauss-Newton matrix


NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.RMSNorm),
)
OF_IMAGES = (Linear2d, GroupConv2d, SparseConv2d, GroupedLinear, Offset2d)


def weight_names(net):
    """Names of everything with a prior: all parameters but log precisions, logits and anchors."""
    hyper = ("log_precisions", "logits", "anchors")
    return [n for n, _ in net.named_parameters() if not any(word in n for word in hyper)]


def pathway_of(net, parameter):
    """ "layer.free" to "layer.residual" where the layer declares the free weights as its stack's residual."""
    layer, _, name = parameter.rpartition(".")
    module = net.get_submodule(layer)
    is_residual = name == "free" and isinstance(module, WeightSharing) and "free" not in module.pathway_names
    return f"{layer}.residual" if is_residual else parameter


def dense_jacobian(net, x, names):
    """∂ outputs / ∂ parameters, (batch, C, P), columns in the order of `names`."""
    parameters = {n: net.get_parameter(n).detach() for n in names}

    def outputs(values):
        return functional_call(net, values, (x,)).flatten(1)

    blocks = jacrev(outputs)(parameters)
    return torch.cat([blocks[n].flatten(2) for n in names], -1).detach()


def dense_ggn(net, x, hessian, names):
    """H = Σ_n J_nᵀ Λ_n J_n, (P, P)."""
    jacobian = dense_jacobian(net, x, names)
    outputs_hessian = hessian(net(x).detach().flatten(1))
    return sum(j.mT @ h @ j for j, h in zip(jacobian, outputs_hessian, strict=True))


def output_covariance(net, x, new, hessian, log_precisions):
    """J (H + Λ)⁻¹ Jᵀ at new inputs, (batch, C, C), with H of the data x and J dense.

    Args:
        log_precisions: log δ by pathway.
    """
    names = weight_names(net)
    prior = torch.cat([log_precisions[n].exp().expand(net.get_parameter(n).numel()) for n in names]).double()
    jacobian = dense_jacobian(net, new, names)
    h = dense_ggn(net, x, hessian, names)
    return jacobian @ torch.linalg.solve(h + torch.diag(prior), jacobian.mT)


def left_out_logits(net, x, y, log_precisions):
    """f_n + V_n (I - W_n V_n)⁻¹ (p_n - y_n) for every training datum, (N, C), centred; V_n = J_n (H + Λ)⁻¹ J_nᵀ."""
    logits = net(x).detach()
    p, classes = logits.softmax(-1), logits.shape[1]
    v, w = output_covariance(net, x, x, softmax_hessian, log_precisions), softmax_hessian(logits)
    moved = v @ torch.linalg.solve(torch.eye(classes) - w @ v, (p - F.one_hot(y, classes)).unsqueeze(-1))
    found = logits + moved.squeeze(-1)
    return found - found.mean(-1, keepdim=True)


def spans(net, names):
    """By pathway name: its rows in the matrices above."""
    found, start = {}, 0
    for name in names:
        size = net.get_parameter(name).numel()
        found[pathway_of(net, name)] = slice(start, start + size)
        start += size
    return found


def occam_factor(h, precisions):
    """½ log det(I + Λ⁻¹ H) by an LU decomposition; precisions (P,)."""
    sign, log_det = np.linalg.slogdet(np.eye(len(h)) + (h / precisions[:, None]).numpy())
    assert sign > 0
    return 0.5 * log_det


def effective_parameters(h, precisions):
    """diag[H (H + Λ)⁻¹], (P,)."""
    return torch.linalg.solve(h + torch.diag(precisions), h).diagonal()


# KFAC-expand, by loops


def pairs_of(net):
    """Pathways that act through the directions of others, Rᵀ R = κ I: by the inner one's name, the other's and κ."""
    sharing = {name: m for name, m in net.named_modules() if isinstance(m, WeightSharing)}
    found = {}
    for name, module in sharing.items():
        joined = f"{name}." if name else ""
        both = module.shared is not None and "free" in module.pathway_names and module.stack.constraint == "doubly"
        if both and module.shared.requires_grad and module.free.requires_grad:
            found[f"{joined}shared"] = (f"{joined}free", module.group_size)
        if module.offset is not None and module.bias.requires_grad and module.offset.requires_grad:
            found[f"{joined}bias"] = (f"{joined}offset", module.group_size)
    for name, module in net.named_modules():
        if isinstance(module, GroupHead) and module.shared is not None and module.free is not None:
            found[f"{name}.shared"] = (f"{name}.free", 1 / module.group_size)
    return found


def coupled_shares(values, precisions, pairs):
    """(½ Σ log(1 + h/δ), γ = Σ h/(h + δ)) by pathway from eigenvalues h and δ; coupled where two are a pair.

    With c = h_w/κβ and s = h_w/α the shared one's share is ½ Σ log(1 + s/(1+c)), its γ Σ s/(1+c+s), and the free one's
    γ is less by Σ [c/(1+c) - c/(1+c+s)].
    """
    found = {
        name: (0.5 * torch.log(1 + h / precisions[name]).sum(), (h / (h + precisions[name])).sum())
        for name, h in values.items()
    }
    for inner, (outer, kappa) in pairs.items():
        if inner in values and outer in values:
            c, s = values[inner] / (kappa * precisions[outer]), values[inner] / precisions[inner]
            found[inner] = (0.5 * torch.log(1 + s / (1 + c)).sum(), (s / (1 + c + s)).sum())
            occam, gamma = found[outer]
            found[outer] = (occam, gamma - (c / (1 + c) - c / (1 + c + s)).sum())
    return found


def patches_of(module, x):
    """For every datum the list of vectors that the kernel is applied to, by slicing."""
    if isinstance(module, GroupHead | Linear2d | GroupedLinear):
        return [[datum.flatten()] for datum in x]
    if isinstance(module, GroupConv2d):
        like = nn.Conv2d(1, 1, module.kernel_size, module.stride, module.padding, module.dilation)
        like.padding_mode = module.padding_mode
        return [[v for part in datum.chunk(module.parts) for v in patches_of(like, part[None])[0]] for datum in x]
    if isinstance(module, nn.Linear | WSLinear):
        return [list(datum.reshape(-1, datum.shape[-1])) for datum in x]
    spatial = len(module.kernel_size)
    images = x.flatten(1, 2) if isinstance(module, WeightSharing) and x.ndim == spatial + 3 else x
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding == "same":
        sides = [(total // 2, total - total // 2) for total in spans]
    else:
        sides = [(p, p) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    images = F.pad(images, [side for pair in reversed(sides) for side in pair], mode=mode)
    corners = [
        range(0, size - span, stride) for size, span, stride in zip(images.shape[2:], spans, module.stride, strict=True)
    ]
    return [
        [
            image[
                :,
                *(
                    slice(corner, corner + span + 1, apart)
                    for corner, span, apart in zip(at, spans, module.dilation, strict=True)
                ),
            ].flatten()
            for at in product(*corners)
        ]
        for image in images
    ]


def responses_of(module, gradient):
    """For every datum the list of output gradients, (out,) or, for sharing layers, (out, G)."""
    if isinstance(module, Linear2d | GroupedLinear):
        return [[g.flatten()] for g in gradient]
    if isinstance(module, GroupConv2d):
        parts = [g.chunk(module.parts) for g in gradient]
        return [[column for part in of_datum for column in part.flatten(1).T] for of_datum in parts]
    if isinstance(module, nn.Linear | GroupHead):
        return [list(g.reshape(-1, g.shape[-1])) for g in gradient]
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return [list(g.reshape(-1, module.weight.numel())) for g in gradient]
    if isinstance(module, WSLinear):
        return [list(g.reshape(-1, *g.shape[-2:])) for g in gradient]
    kept = 2 if isinstance(module, WeightSharing) else 1
    return [[g[(..., *at)] for at in product(*(range(n) for n in g.shape[kept:]))] for g in gradient]


def hessian_columns(hessian):
    """Columns s_c with Σ_c s_c s_cᵀ = Λ, from its eigenvectors; any root gives the same B."""
    values, vectors = torch.linalg.eigh(hessian)
    return vectors * values.clamp(min=0).sqrt()[None, :]


def kron_seconds(net, x, hessian, reduce=False):
    """By layer: A = mean of a aᵀ over data, calls and positions, B = Σ g gᵀ over data, columns, calls, positions.

    With `reduce`, a is averaged and g summed over a datum's calls and positions first. A normalisation has B alone, as
    has an offset.
    """
    kinds = (WeightSharing, GroupHead, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *NORMS, *OF_IMAGES)
    heard, handles = {}, []
    for name, module in net.named_modules():
        if isinstance(module, kinds):

            def hear(_module, inputs, output, name=name):
                output = output if output.requires_grad else output.detach().requires_grad_()  # frozen up to here
                heard.setdefault(name, []).append((inputs[0].detach().clone(), output))
                return output.clone()

            handles.append(module.register_forward_hook(hear))
    outputs = net(x).flatten(1)
    for handle in handles:
        handle.remove()
    hessians = hessian(outputs.detach())
    seconds = {}
    for name, calls in heard.items():
        module, a, b, count = net.get_submodule(name), 0, 0, 0
        inputs = [] if isinstance(module, (*NORMS, Offset2d)) else [call_input for call_input, _ in calls]
        for datum in range(len(x)):
            vectors = [v for call_input in inputs for v in patches_of(module, call_input[datum : datum + 1])[0]]
            for v in [sum(vectors) / len(vectors)] if reduce and vectors else vectors:
                a = a + torch.outer(v, v)
                count += 1
            columns = hessian_columns(hessians[datum])
            for column in range(columns.shape[1]):
                value = outputs[datum] @ columns[:, column]
                gradients = torch.autograd.grad(value, [o for _, o in calls], retain_graph=True)
                vectors = [g for gradient in gradients for g in responses_of(module, gradient[datum : datum + 1])[0]]
                for g in [sum(vectors)] if reduce else vectors:
                    b = b + torch.tensordot(g, g, 0)
        seconds[name] = (a / count if count else None, b.detach())
    return seconds


def grouped(b, a, groups):
    """B ⊗ A; for a grouped convolution that of every group's own blocks, one after the other."""
    rows, columns = len(b) // groups, len(a) // groups
    parts = [
        torch.kron(
            b[i * rows : (i + 1) * rows, i * rows : (i + 1) * rows],
            a[i * columns : (i + 1) * columns, i * columns : (i + 1) * columns],
        )
        for i in range(groups)
    ]
    return torch.block_diag(*parts)


def free_root(layer):
    """L_g of a soft stack, lower triangular: I + (β/α)(I - R_g R_gᵀ), or (1 + jitter) I - R_g R_gᵀ for β → ∞."""
    roots = []
    for r in layer.representations().detach():
        eye = torch.eye(len(r), dtype=r.dtype)
        r = r / (r.sum(0).max() * r.sum(1).max()).sqrt()  # as far as Sinkhorn went: no row and column sums above one
        if "free" in layer.pathway_names:
            alpha, beta = layer.log_precisions["shared"].exp(), layer.log_precisions["free"].exp()
            covariance = eye + (beta / alpha).detach() * (eye - r @ r.T)
        else:
            covariance = (1 + RESIDUAL_JITTER) * eye - r @ r.T
        roots.append(torch.linalg.cholesky(covariance))
    return roots


def interpolation_of(anchors):
    """P = K_tz (K_zz + s² I)⁻¹, entry by entry."""
    places, length = anchors.places.detach(), math.exp(anchors.log_lengthscale.item())
    grid = [torch.tensor(t, dtype=places.dtype) for t in product(*(range(n) for n in anchors.size))]

    def kernel(left, right):
        values = [[math.exp(-float((a - b).square().sum()) / (2 * length**2)) for b in right] for a in left]
        return torch.tensor(values, dtype=places.dtype)

    noisy = kernel(places, places) + anchors.noise**2 * torch.eye(len(places), dtype=places.dtype)
    return kernel(grid, places) @ torch.linalg.inv(noisy)


def _through(a, left, right, channels):
    """Every channel pair's block of A, seen through a stack: M_gᵀ A_ij M_g."""
    d = len(left)
    out = torch.zeros_like(a)
    for i, j in product(range(channels), repeat=2):
        rows, columns = slice(i * d, (i + 1) * d), slice(j * d, (j + 1) * d)
        out[rows, columns] = left.T @ a[rows, columns] @ right
    return out


def kron_blocks(net, x, hessian, reduce=False):
    """By pathway: H ≈ the KFAC-expand (or -reduce) approximation, as one dense matrix over the pathway's parameters."""
    blocks = {}
    for name, (a, b) in kron_seconds(net, x, hessian, reduce).items():
        module = net.get_submodule(name)
        if isinstance(module, (*NORMS, Offset2d)):  # the exact block of its factor is for the dense matrix to give
            if getattr(module, "bias", None) is not None:
                blocks[f"{name}.bias"] = b
            continue
        if isinstance(module, GroupHead):
            copies = torch.full((module.group_size, 1), 1 / module.group_size, dtype=a.dtype)
            mean = torch.kron(torch.eye(module.in_features, dtype=a.dtype), copies)  # w to its copies w/G
            blocks |= {f"{name}.shared": torch.kron(b, mean.T @ a @ mean), f"{name}.free": torch.kron(b, a)}
            blocks[f"{name}.bias"] = b
            continue
        if isinstance(module, SparseConv2d):
            p = torch.kron(torch.eye(module.in_channels, dtype=a.dtype), interpolation_of(module.anchors))
            blocks |= {f"{name}.weight": torch.kron(b, p.T @ a @ p), f"{name}.bias": b}
            continue
        if isinstance(module, GroupedLinear):  # every group by itself
            p, q = (
                torch.eye(n, dtype=a.dtype) if anchors is None else interpolation_of(anchors)
                for n, anchors in [
                    (module.in_features, module.anchors_in),
                    (module.out_features, module.anchors_out),
                ]
            )
            eye = torch.eye(module.groups, dtype=a.dtype)
            p, q = torch.kron(eye, p), torch.kron(eye, q)
            blocks[f"{name}.weight"] = grouped(q.T @ b @ q, p.T @ a @ p, module.groups)
            continue
        if not isinstance(module, WeightSharing):
            blocks[f"{name}.weight"] = (
                torch.kron(b, a) if getattr(module, "groups", 1) == 1 else grouped(b, a, module.groups)
            )
            if module.bias is not None:
                blocks[f"{name}.bias"] = b
            continue
        group, channels, out = module.group_size, module.in_channels, module.out_channels
        r = module.representations().detach()
        b_elements = [b[:, g, :, g] for g in range(group)]
        b_sum = b.sum((1, 3)) if reduce else sum(b_elements)
        if module.shared is not None:
            a_shared = sum(_through(a, r[g], r[g], channels) for g in range(group)) / group
            if reduce:
                a_shared = sum(_through(a, r[g], r[h], channels) for g in range(group) for h in range(group)) / group**2
            blocks[f"{name}.shared"] = torch.kron(b_sum, a_shared)
        if module.free is not None and module.stack.kind == "fixed":
            blocks[f"{name}.free"] = torch.kron(b.reshape(out * group, out * group), a)
        elif module.free is not None:
            size, fan_in = module.free.numel(), len(a)
            dense = torch.zeros(size, size, dtype=a.dtype)
            order = torch.arange(size).reshape(out, group, fan_in)
            for g, root in enumerate(free_root(module)):
                rows = order[:, g].flatten()
                dense[rows[:, None], rows] = torch.kron(b_elements[g], _through(a, root, root, channels))
            blocks[pathway_of(net, f"{name}.free")] = dense
        if module.bias is not None:
            blocks[f"{name}.bias"] = b_sum if len(module.bias) == out else b.reshape(out * group, out * group)
        if module.offset is not None:
            blocks[f"{name}.offset"] = b.reshape(out * group, out * group)
    return blocks


# Linear-Gaussian models


def linear_features(net, x, names):
    """Φ with f = Φ θ for a network that is linear in its weights, (batch · C, P)."""
    phi = dense_jacobian(net, x, names)
    return phi.reshape(-1, phi.shape[-1])


def linear_gaussian_map(phi, y, precisions, noise):
    """θ* = (ΦᵀΦ + σ² Λ)⁻¹ Φᵀ y."""
    return torch.linalg.solve(phi.T @ phi + noise**2 * torch.diag(precisions), phi.T @ y.flatten())


def linear_gaussian_log_evidence(phi, y, precisions, noise):
    """log N(y; 0, Φ Λ⁻¹ Φᵀ + σ² I), by scipy."""
    covariance = phi @ torch.diag(1 / precisions) @ phi.T + noise**2 * torch.eye(len(phi), dtype=phi.dtype)
    return float(multivariate_normal(cov=covariance.numpy()).logpdf(y.flatten().numpy()))


# Finite differences


@torch.no_grad()
def central_derivative(f, tensors, directions, step=1e-4):
    """(f(t + s u) - f(t - s u)) / 2 s, all tensors moved together: error s² / 6 times the third derivative."""
    starts = [tensor.detach().clone() for tensor in tensors]
    values = []
    for distance in (step, -step):
        for tensor, start, direction in zip(tensors, starts, directions, strict=True):
            tensor.copy_(start + distance * direction)
        values.append(float(f()))
    for tensor, start in zip(tensors, starts, strict=True):
        tensor.copy_(start)
    return (values[0] - values[1]) / (2 * step)


def central_gradient(f, tensor, step=1e-4):
    """The gradient of f in every entry of a tensor, by central differences."""
    gradient = torch.zeros_like(tensor)
    for index in np.ndindex(*tensor.shape):
        direction = torch.zeros_like(tensor)
        direction[index] = 1.0
        gradient[index] = central_derivative(f, [tensor], [direction], step)
    return gradient


def sampled_evidence(net, x, y, precision, samples=100_000):
    """log ∫ p(y | x, θ) N(θ; 0, 1/precision) dθ of a net with one weight, by draws from the prior; and its error."""
    (name,) = weight_names(net)
    shape = net.get_parameter(name).shape
    torch.manual_seed(0)

    def log_likelihood(theta):
        logits = functional_call(net, {name: theta}, (x,))
        return -F.cross_entropy(logits, y, reduction="sum")

    drawn = torch.randn(samples, *shape, dtype=torch.float64) * precision**-0.5
    logs = torch.cat([vmap(log_likelihood)(part) for part in drawn.split(10_000)]).detach()
    likelihoods = (logs - logs.max()).exp()
    error = float(likelihoods.std() / likelihoods.mean()) / math.sqrt(samples)
    return float(likelihoods.mean().log() + logs.max()), error
