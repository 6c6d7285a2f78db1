"""The weight-sharing mathematics that all sharing layers have in common: kernel, prior, sharing strength."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesws.layers.cache import Deriving
from bayesws.layers.contract import Declaration, Factors, Pathway, Status, Structure, Within, declare
from bayesws.layers.sharing_settings import Sharing
from bayesws.layers.stack import RepresentationStack
from bayesws.sharing.doubly_stochastic import DoublyStochastic
from bayesws.sharing.regularisers import mean_entropy, normaliser

FREE_SCALE = 0.1  # of the free weights at the start: a large free pathway fits first and hides the symmetry
RESIDUAL_JITTER = 1e-4  # the residual's variance at a permutation, in units of α⁻¹: keeps its root differentiable


class WeightSharing(Deriving):
    """A kernel that is shared over G representations, plus what a free pathway adds to it.

    W_g = R_g w + L_g v_g,   w ~ N(0, α⁻¹ I),   v_g ~ N(0, β⁻¹ I),   L_g L_gᵀ = I + (β/α) (I - R_g R_gᵀ)

    so that Var(W_g) = (α⁻¹ + β⁻¹) I for every g, whatever the stack; L_g = I for permutations. Without the free
    pathway a soft stack keeps the residual, β → ∞: W_g = R_g w + L_g v_g with v_g ~ N(0, α⁻¹ I), L_g L_gᵀ =
    I - R_g R_gᵀ; training on the task loss leaves that residual at its start, 0, which is the published layer.
    Without the shared pathway the copies are independent, W_g = v_g, and there is no stack to learn.

    That needs doubly stochastic R_g. With constraint "rows" or "none" (ablations) R_g R_gᵀ is divided by c_g =
    max(1, ‖R_g‖₁ ‖R_g‖_∞) ≥ ‖R_g‖₂², 1 for a doubly stochastic R_g, which keeps the covariance positive semi-definite,
    but Var(W_g) then grows by α⁻¹ (1 - 1/c_g) R_g R_gᵀ, and the evidence depends on the stack through that, too.

    Within `computed_once` stack, roots L and kernel are computed once; otherwise anew whenever they are asked for.

    Subclasses say how the kernel is applied. Parameters: `shared` w (out, in, d), `free` v (out, G, in, d), `bias`
    (out,), shared over the group, or with bias="free" (out·G,), or with bias="both" the first and `offset` (out·G,);
    and log precisions of each. bias=True with `Sharing.contains` is what the pathways say of the three.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        support: tuple[int, ...],
        on_features: bool,
        bias: bool | str,
        sharing: Sharing,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if bias not in (True, False, "free", "both"):
            raise ValueError(
                f"bias={bias!r}: expected True (one for all group elements), 'free' (one each), 'both' or False"
            )
        self.in_channels, self.out_channels, self.group_size = in_channels, out_channels, sharing.group_size
        if bias is True and sharing.contains:
            bias = "both" if len(sharing.pathways) == 2 else "free" if "free" in sharing.pathways else True
        self.has_free_bias = bias == "free"
        self.on_features, self.pathway_names = on_features, sharing.pathways
        self.stack = RepresentationStack(sharing, support, on_features, device, dtype)
        d, group_size = self.stack.size, self.group_size
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        names = list(self.pathway_names) + ["bias"] * bool(bias) + ["offset"] * (bias == "both")
        self.log_precisions = nn.ParameterDict({name: nn.Parameter(torch.zeros((), **new)) for name in names})
        self.register_parameter("shared", None)
        self.register_parameter("free", None)
        self.register_parameter("bias", None)
        self.register_parameter("offset", None)
        if "shared" in self.pathway_names:
            self.shared = nn.Parameter(torch.empty(out_channels, in_channels, d, **new))
        if "free" in self.pathway_names or self.stack.is_soft:
            self.free = nn.Parameter(torch.empty(out_channels, group_size, in_channels, d, **new))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels * (group_size if self.has_free_bias else 1), **new))
        if bias == "both":
            self.offset = nn.Parameter(torch.empty(out_channels * group_size, **new))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as torch's own layers do, U(±1/√fan_in), the free ones smaller beside shared ones; no bias."""
        degree = (self.free if self.shared is None else self.shared).shape[-1]
        bound = 1 / math.sqrt(self.in_channels * degree)
        scales = ((self.shared, 1.0), (self.free, self._free_scale()), (self.bias, 0.0), (self.offset, 0.0))
        for parameter, scale in scales:
            if parameter is not None:
                nn.init.uniform_(parameter, -bound * scale, bound * scale)

    def _free_scale(self) -> float:
        if "shared" not in self.pathway_names:
            return 1.0
        return FREE_SCALE if "free" in self.pathway_names else 0.0

    def representations(self) -> Float[Tensor, "group d d"]:
        """The stack R_1 = I, ..., R_G, (G, d, d), doubly stochastic unless its `constraint` asks for less."""
        return self.convergence().matrix

    def convergence(self) -> DoublyStochastic:
        """The stack with the residual and the iterations of its projection."""
        return self.derive("stack", self.stack.converge)

    def kernel(self) -> Float[Tensor, "out group in d"]:
        """The effective kernel W_g = R_g w + L_g v_g of every output channel and group element."""
        return self.derive("kernel", self._sum_of_pathways)

    def _sum_of_pathways(self) -> Tensor:
        if self.shared is None:
            return self.free
        # R_1 = I and L_1 = √λ I: the anchor needs no product
        first = self.shared.unsqueeze(1)
        r = self.representations()
        rest = torch.einsum("oim,gnm->ogin", self.shared, r[1:])
        if self.free is not None and self.stack.is_soft:
            first = first + self._anchor_variance() ** 0.5 * self.free[:, :1]
            rest = rest + torch.einsum("ogim,gnm->ogin", self.free[:, 1:], self._free_roots(r)[1:])
        kernel = torch.cat([first, rest], 1)
        return kernel if self.free is None or self.stack.is_soft else kernel + self.free

    def _anchor_variance(self) -> float:
        """λ of L_1 L_1ᵀ = λ I."""
        return 1.0 if "free" in self.pathway_names else RESIDUAL_JITTER

    def _free_roots(self, r: Tensor) -> Tensor:
        """L_g, lower triangular, (G, d, d): the shape of the free pathway's prior under the soft stack r."""
        return self.derive("free roots", lambda: self._factorise_free(r[1:]))

    def _factorise_free(self, r: Tensor) -> Tensor:
        eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
        covariance = eye - r @ r.mT / _squared_norms(r)
        if "free" in self.pathway_names:
            covariance = covariance * (self.log_precisions["free"] - self.log_precisions["shared"]).exp()
        variance = self._anchor_variance()
        may_wait = r.device.type == "cpu"  # for the check that the factorisation succeeded
        roots, _ = torch.linalg.cholesky_ex(covariance + variance * eye, check_errors=may_wait)
        return torch.cat([variance**0.5 * eye.unsqueeze(0), roots])

    def set_kernel(self, kernel: Float[Tensor, "out group in d"]) -> None:
        """Choose weights with this effective kernel: w by least squares, v_g = L_g⁻¹ (W_g - R_g w) the exact rest.

        Raises:
            ValueError: a layer without the free pathway, which cannot take up the rest; a kernel of another shape.
        """
        if "free" not in self.pathway_names:
            raise ValueError(f"pathways={self.pathway_names}: any kernel at all needs the free pathway")
        if kernel.shape != self.free.shape:
            raise ValueError(f"kernel of shape {tuple(kernel.shape)}: expected {tuple(self.free.shape)}")
        with torch.no_grad():
            r, rest = self.representations(), kernel.double()
            if self.shared is not None:
                # argmin_w Σ_g ‖W_g - R_g w‖² = (Σ_g R_gᵀ R_g)⁻¹ Σ_g R_gᵀ W_g
                normal = torch.einsum("gnm,gnk->mk", r, r).double()
                sums = torch.einsum("gnm,ogin->oim", r.double(), rest)
                self.shared.copy_(torch.linalg.solve(normal, sums, left=False))
                rest = rest - torch.einsum("oim,gnm->ogin", self.shared.double(), r.double())
            if self.stack.is_soft:
                roots = self._free_roots(r).mT.double().unsqueeze(1)  # v_g L_gᵀ = rest, as rows
                rows = torch.linalg.solve_triangular(roots, rest.permute(1, 0, 2, 3), upper=True, left=False)
                rest = rows.permute(1, 0, 2, 3)
            self.free.copy_(rest)

    def flat_bias(self) -> Float[Tensor, " out_group"] | None:
        """The bias of every output channel and group element, (out·G,); None where there is none."""
        if self.bias is None:
            return None
        if self.has_free_bias:
            return self.bias
        one_for_all = self.bias.repeat_interleave(self.group_size)
        return one_for_all if self.offset is None else one_for_all + self.offset

    def set_bias(self, bias: Float[Tensor, " out_group"]) -> None:
        """Choose the bias of every copy; with an offset, their means are the shared one, and the rest is its own."""
        with torch.no_grad():
            if self.offset is None:
                self.bias.copy_(bias)
                return
            self.bias.copy_(bias.unflatten(0, (-1, self.group_size)).mean(1))
            self.offset.copy_(bias - self.bias.repeat_interleave(self.group_size))

    def sharing_strength(self) -> Tensor:
        """ρ = β / (α + β) in [0, 1]: the correlation of corresponding kernel entries of two copies under the prior.

        For a soft stack it is multiplied by the mean of ‖R_g R_hᵀ‖²_F / (c_g c_h d) over pairs g ≠ h (1 for
        permutations; c = 1 for doubly stochastic matrices).
        Without the shared pathway ρ = 0; without the free one only the stack's softness lowers it from 1.
        """
        return self.strength_at({})

    def strength_at(self, log_precisions: Mapping[str, Tensor]) -> Tensor:
        """`sharing_strength` at other log precisions, log δ by pathway, (...); those not given are the layer's own."""
        logs = dict(self.log_precisions.items()) | dict(log_precisions)
        if self.shared is None:
            return torch.zeros_like(logs["free"])
        rho = torch.ones_like(logs["shared"])
        if "free" in self.pathway_names:
            rho = torch.sigmoid(logs["free"] - logs["shared"])
        return rho * self.stack_overlap().to(rho)

    def stack_overlap(self) -> Tensor:
        """Mean of ‖R_g R_hᵀ‖²_F / (c_g c_h d) over pairs g ≠ h, in [0, 1]: 1 for permutations."""
        r = self.representations()
        if not self.stack.is_soft or self.group_size == 1:
            return torch.ones((), dtype=r.dtype, device=r.device)
        r = r / _squared_norms(r).sqrt()
        overlaps = torch.einsum("gnm,hkm->ghnk", r, r).square().sum((-2, -1)) / r.shape[-1]
        pairs = self.group_size * (self.group_size - 1)
        return (overlaps.sum() - overlaps.diagonal().sum()) / pairs

    def pathways(self) -> tuple[Pathway, ...]:
        """The pathways of this layer: shared, free (or the residual of a soft stack), bias, offset, as far as there."""
        found = []
        if self.shared is not None:
            found.append(
                Pathway(
                    "shared",
                    self.shared,
                    self.log_precisions["shared"],
                    self._pull_shared,
                    self._factor_shared,
                    self._reduce_shared,
                    within=self._shared_within(),
                )
            )
        if self.free is not None:
            name = "free" if "free" in self.pathway_names else "residual"
            precision = self.log_precisions["free" if name == "free" else "shared"]
            found.append(
                Pathway(
                    name,
                    self.free,
                    precision,
                    self._pull_free,
                    self._factor_free,
                    of_prior_only=name == "residual",
                    breaks_sharing=name == "free" and self.shared is not None,
                    picks_entries=not self.stack.is_soft,
                )
            )
        if self.bias is not None:
            precision = self.log_precisions["bias"]
            pull, factors, reduced = self._pull_bias, self._factor_bias, self._reduce_bias
            within = None if self.offset is None else self._bias_within()
            found.append(Pathway("bias", self.bias, precision, pull, factors, reduced, "bias", within=within))
        if self.offset is not None:
            precision = self.log_precisions["offset"]
            found.append(
                Pathway(
                    "offset",
                    self.offset,
                    precision,
                    lambda gradient: gradient,
                    lambda a, b: [(a, b)],
                    acts="bias",
                    breaks_sharing=self.shared is not None,
                )
            )
        return tuple(p for p in found if p.parameter.requires_grad)

    def _shared_within(self) -> Within | None:
        """K = R w + v: with Rᵀ R = G I for permutations. For a soft stack K = L (v + L⁻¹ R w), and as R is doubly
        stochastic and L Lᵀ ≥ I, Rᵀ (L Lᵀ)⁻¹ R ≤ G I. Other constraints (ablations) promise no such bound."""
        if "free" not in self.pathway_names or self.stack.constraint != "doubly":
            return None
        return Within(
            "free", float(self.group_size), self._lift, self._lower, self._gram if self.stack.is_soft else None
        )

    def _bias_within(self) -> Within:
        """One number for all copies beside one for each: Rᵀ R = G I."""
        return Within(
            "offset",
            float(self.group_size),
            lambda bias: bias.repeat_interleave(self.group_size),
            lambda offset: offset.unflatten(0, (-1, self.group_size)).sum(-1),
        )

    def _whitened(self) -> Tensor:
        """L_g⁻¹ R_g, (G, d, d): the stack in the coordinates of the free weights."""
        r = self.representations()
        if not self.stack.is_soft:
            return r
        return torch.linalg.solve_triangular(self._free_roots(r), r, upper=False)

    def _gram(self) -> Tensor:
        r = self._whitened()
        return torch.einsum("gnm,gnk->mk", r, r)

    def _lift(self, shared: Tensor) -> Tensor:
        return torch.einsum("gnm,oim->ogin", self._whitened(), shared)

    def _lower(self, free: Tensor) -> Tensor:
        return torch.einsum("gnm,ogin->oim", self._whitened(), free)

    def structure(self) -> tuple[nn.Parameter, ...]:
        """The stack's logits; empty where it is fixed."""
        return tuple(self.stack.logits)

    def declaration(self) -> Declaration:
        """What the evidence may know of this layer."""
        return Declaration(
            self.pathways(),
            self.patches,
            self.responses,
            self._learned_structure(),
            tuple(self.log_precisions.values()),
            shaped_by_precisions=self.stack.is_soft,  # through the roots L of the free pathway
            strength=self.strength_at,
        )

    def _learned_structure(self) -> Structure | None:
        """The soft stack; its regularisers are for logits, which a stack with constraint "none" has not."""
        if not self.stack.is_soft:
            return None
        regularisers = {"normaliser": self._normaliser, "entropy": self._entropy}
        return Structure(self.structure(), {} if self.stack.constraint == "none" else regularisers, self._status)

    def _normaliser(self) -> Tensor:
        return torch.stack([normaliser(logits) for logits in self.stack.logits]).sum()

    def _entropy(self) -> Tensor:
        return mean_entropy(self.representations())

    def _status(self) -> Status:
        made = self.convergence()
        if made.converged:
            return Status(made.matrix)
        note = (
            f"Sinkhorn stopped after {made.iterations} iterations at residual {made.residual:.1e}; "
            "the stack was not quite doubly stochastic"
        )
        return Status(made.matrix, False, note, made.residual)

    def patches(self, x: Tensor) -> Tensor:
        """Layer input to (batch, in·d, positions)."""
        raise NotImplementedError

    def responses(self, y: Tensor) -> Tensor:
        """Layer output (batch, out, G, ...) or its gradient to (batch, out·G, positions)."""
        raise NotImplementedError

    # What each pathway makes of the gradient of the kernel, and of its Kronecker factors (DESIGN: one pass for all).

    def _by_element(self, kernel_gradient: Tensor) -> Tensor:
        return kernel_gradient.unflatten(-1, (self.in_channels, -1)).unflatten(-3, (-1, self.group_size))

    def _pull_shared(self, kernel_gradient: Tensor) -> Tensor:
        return torch.einsum("gnm,...ogin->...oim", self.representations(), self._by_element(kernel_gradient)).flatten(
            -3
        )

    def _pull_free(self, kernel_gradient: Tensor) -> Tensor:
        if not self.stack.is_soft:
            return kernel_gradient.flatten(-2)
        return torch.einsum(
            "gnm,...ogin->...ogim", self._free_roots(self.representations()), self._by_element(kernel_gradient)
        ).flatten(-4)

    def _pull_bias(self, bias_gradient: Tensor) -> Tensor:
        if self.has_free_bias:
            return bias_gradient
        return bias_gradient.unflatten(-1, (-1, self.group_size)).sum(-1)

    def _element_blocks(self, b: Tensor) -> Tensor:
        """B (out·G, out·G) to its diagonal blocks B_gg, (G, out, out)."""
        b = b.unflatten(0, (-1, self.group_size)).unflatten(2, (-1, self.group_size))
        return torch.einsum("ogpg->gop", b)

    def _element_sum(self, b: Tensor) -> Tensor:
        """Σ_gh B_gh, (out, out): the second moment of gradients that are summed over the group."""
        return b.unflatten(0, (-1, self.group_size)).unflatten(2, (-1, self.group_size)).sum((1, 3))

    def _inputs(self, roots: Tensor, a: Tensor) -> Tensor:
        """(I_in ⊗ M_g)ᵀ A (I_in ⊗ M_g) for a stack of d × d matrices M, (G, in·d, in·d)."""
        a = a.unflatten(0, (self.in_channels, -1)).unflatten(2, (self.in_channels, -1))
        return torch.einsum("gnk,injm,gml->gikjl", roots, a, roots).flatten(3, 4).flatten(1, 2)

    def _factor_shared(self, a: Tensor, b: Tensor) -> Factors:
        return [(self._inputs(self.representations(), a).mean(0), self._element_blocks(b).sum(0))]

    def _reduce_shared(self, a: Tensor, b: Tensor) -> Factors:
        mean = self._inputs(self.representations().mean(0, keepdim=True), a)
        return [(mean[0], self._element_sum(b))]

    def _factor_free(self, a: Tensor, b: Tensor) -> Factors:
        if not self.stack.is_soft:
            return [(a, b)]
        inputs = self._inputs(self._free_roots(self.representations()), a)
        return list(zip(inputs, self._element_blocks(b), strict=True))

    def _factor_bias(self, a: Tensor, b: Tensor) -> Factors:
        return [(a, b if self.has_free_bias else self._element_blocks(b).sum(0))]

    def _reduce_bias(self, a: Tensor, b: Tensor) -> Factors:
        return [(a, b if self.has_free_bias else self._element_sum(b))]

    def _sizes_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"

    def extra_repr(self) -> str:
        """Sizes, pathways and bias."""
        bias = "both" if self.offset is not None else "free" if self.has_free_bias else self.bias is not None
        return f"{self._sizes_repr()}, group_size={self.group_size}, pathways={self.pathway_names}, bias={bias!r}"


def _squared_norms(r: Tensor) -> Tensor:
    """max(1, ‖R‖₁ ‖R‖_∞) ≥ ‖R Rᵀ‖₂ of every matrix, (..., 1, 1): 1 once Sinkhorn has converged."""
    sizes = r.abs()
    return (sizes.sum(-1).amax(-1) * sizes.sum(-2).amax(-1)).clamp(min=1)[..., None, None]


@declare.register
def _(module: WeightSharing) -> Declaration:
    return module.declaration()
