"""One weight-sharing layer: its stack as images, its composition table, its kernels by group element."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesws.layers.identify import Identified, identify_group
from bayesws.layers.weight_sharing import WeightSharing
from bayesws.report.figures.drawing import Drawing
from bayesws.report.figures.matrices import MOST, OUTLINED, SUBSCRIPTS, kernel_figure, stack_figure
from bayesws.report.grid import Grid, Products
from bayesws.report.sections.section import Block
from bayesws.sharing.candidates import split_product
from bayesws.sharing.doubly_stochastic import dense_stack
from bayesws.training.result import FitResult

LARGE = 64  # positions from which on a product stack is shown by its factors
CHANNELS = 4  # shown of a lifting layer
ELEMENTS = 8  # shown of a kernel
ROOMY = 5  # columns of kernels with room for a word above each
WIDEST = 24  # elements of the largest composition table
LONGEST = 120  # characters of a permutation in cycles


def sharing_layers(fit: FitResult) -> list[tuple[str, WeightSharing]]:
    """The weight-sharing layers of a fit's network, by name."""
    return [(name, m) for name, m in fit.model.named_modules() if isinstance(m, WeightSharing)]


def group_of(fit: FitResult, name: str) -> str:
    """What a layer shares over, in a word or two; empty where that is nothing."""
    layer = dict(sharing_layers(fit)).get(name)
    found = None if layer is None else identified(layer)
    return "" if layer is None or found is None or layer.group_size == 1 else found.name or "no known group"


def identified(layer: WeightSharing) -> Identified | None:
    """`identify_group`; None for a layer without a stack, or with one that is not doubly stochastic."""
    if layer.shared is None or layer.stack.constraint != "doubly":
        return None
    with torch.no_grad():
        return identify_group(layer)


@torch.no_grad()
def layer_block(name: str, layer: WeightSharing, start: str) -> Block:
    """Everything about one layer.

    Args:
        name: its path in the network.
        layer: the layer.
        start: of the figures' names.
    """
    found, file = identified(layer), f"{start}-{name or 'layer'}"
    drawings = _stack_drawings(layer, found, file) if layer.shared is not None and layer.group_size > 1 else []
    drawings.append(_kernels(layer, file))
    heading = name or type(layer).__name__
    if found is None or layer.group_size == 1:
        words = ("Weights of every group element are free.",) if layer.shared is None else ()
        return Block(heading, words=words, drawings=drawings)
    products = Products.of(found.table) if layer.group_size <= WIDEST else None
    return Block(
        f"{heading}: {found.name or 'no known group'}", _words(found), drawings, products, [_permutations(found)]
    )


def _words(found: Identified) -> list[str]:
    near = ", ".join(f"{m.name} {m.distance:.2f}" for m in found.matches[:3])
    measured = (
        f"Closure error {found.closure_error:.3f}, row entropy {found.entropy:.3f} nats, distance to permutations "
        f"{found.distance:.3f}. The nearest permutations are {found.abstract or 'no group'}."
        + (f" Known groups by distance: {near}." if near else "")
    )
    return [measured] if found.name else [f"Why: {found.reason}.", measured]


def _stack_drawings(layer: WeightSharing, found: Identified | None, file: str) -> list[Drawing]:
    stack, matrices = layer.stack, layer.representations().detach().cpu()
    size, d = matrices.shape[:2]
    more = f" The first {MOST} of {size}." if size > MOST else ""
    if stack.kind == "product" and d > LARGE:
        parts = [dense_stack(logits, stack.constraint).matrix.detach().cpu() for logits in stack.logits]
        return [
            Drawing(
                f"{file}-stack-{what}",
                f"Representations on the {what}",
                f"Factor {letter} of R = S ⊗ P, {m.shape[-1]} × {m.shape[-1]}.{more}",
                lambda m=m, letter=letter: stack_figure(m, letter=letter),  # type: ignore[misc]
            )
            for what, letter, m in zip(("group axis", "support"), "SP", parts, strict=True)
        ]
    blocks = f" Lines part the {stack.axis} positions of the group axis." if stack.axis > 1 else ""
    nearest = None if found is None else found.permutations
    outlined = " Outlined is the nearest permutation." if found is not None and d <= OUTLINED else ""
    return [
        Drawing(
            f"{file}-stack",
            f"Representations R₁ to R{size}".translate(SUBSCRIPTS),
            f"The stronger the colour, the nearer to 1, on {d} positions.{outlined}{blocks}{more}",
            lambda: stack_figure(matrices, nearest, stack.axis),
        )
    ]


def _kernels(layer: WeightSharing, file: str) -> Drawing:
    """The strongest kernels: of a lifting layer some channels, on group features one, element by element."""
    kernel = layer.kernel().detach().cpu()  # (out, G, in, d)
    support, axis = layer.stack.support, layer.stack.axis
    shown = min(layer.group_size, ELEMENTS)
    strengths = kernel.square().sum((1, 3))  # (out, in)
    by_output = strengths.max(1)
    ranked = by_output.values.argsort(descending=True, stable=True).tolist()
    elements = [f"g = {g + 1}" for g in range(shown)] if shown <= ROOMY else [str(g + 1) for g in range(shown)]
    if axis == 1 and len(support) > 1:
        pairs = [(o, int(by_output.indices[o])) for o in sorted(ranked[:CHANNELS])]
        tiles = [[_as_image(kernel[o, g, i], support) for g in range(shown)] for o, i in pairs]
        rows = [f"{o + 1}" if kernel.shape[2] == 1 else f"{i + 1} → {o + 1}" for o, i in pairs]
        which = f"A row an output channel, the {len(pairs)} with the largest weights of {len(kernel)}"
        columns = elements
    else:
        output = ranked[0]
        source = int(by_output.indices[output])
        parts = kernel[output, :shown, source].unflatten(-1, (axis, -1))
        tiles = [[_as_image(part, support) for part in element] for element in parts]
        rows, columns = elements, _columns(axis)
        which = (
            f"The largest of {strengths.numel()} pairs of channels, input {source + 1} to output {output + 1}; a row "
        )
        which += "a group element" + (", a column a position of the input's group axis" if axis > 1 else "")
    more = f" The first {shown} of {layer.group_size} elements." if shown < layer.group_size else ""
    return Drawing(
        f"{file}-kernels",
        "Kernels by group element",
        f"{which}. Green is positive, orange negative.{more}",
        lambda: kernel_figure(tiles, rows, columns),
    )


def _columns(axis: int) -> list[str]:
    """Headings of the positions of a group axis, short where there are many."""
    return [""] if axis == 1 else [f"from {j + 1}" if axis <= ROOMY else str(j + 1) for j in range(axis)]


def _as_image(values: Tensor, support: Sequence[int]) -> Tensor:
    """A kernel as a matrix: a line is a row, the slices of a cube stand side by side."""
    if len(support) == 1:
        return values.reshape(1, -1)
    return values.reshape(-1, *support[-2:]).permute(1, 0, 2).flatten(1)


def _permutations(found: Identified) -> Grid:
    rows = [[f"{g + 1}", _as_product(p, found.axis)] for g, p in enumerate(found.permutations)]
    caption = "Cycles of positions, counted from 1 row by row."
    return Grid("Nearest permutations", [("element", False), ("permutation", False)], rows, caption)


def _as_product(permutation: Tensor, axis: int) -> str:
    """In cycles; on group features as one of the axis and one of the support, where it is such a product."""
    if axis == 1:
        return _cycles(permutation)
    s, p = split_product(permutation, axis)
    if not torch.equal((s[:, None] * len(p) + p).flatten(), permutation):
        return _cycles(permutation)
    return f"axis {_cycles(s)}, support {_cycles(p)}"


def _cycles(permutation: Tensor) -> str:
    targets, seen, cycles = permutation.tolist(), set[int](), []
    for first in range(len(targets)):
        cycle, place = [], first
        while place not in seen:
            seen.add(place)
            cycle.append(place + 1)
            place = targets[place]
        if len(cycle) > 1:
            cycles.append(cycle)
    text = "".join(f"({' '.join(map(str, cycle))})" for cycle in cycles)
    if len(text) > LONGEST:
        counts = sorted(Counter(len(cycle) for cycle in cycles).items())
        return ", ".join(f"{count} × length {length}" for length, count in counts)
    return text or "identity"
