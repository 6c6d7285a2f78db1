"""How much memory is at hand, and what a curvature takes of it: known before anything is allocated."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import psutil
import torch
from torch import Tensor

from bayesws.evidence.accumulators import Accumulator, accumulators_for
from bayesws.evidence.capture import Layers
from bayesws.evidence.curvature import Curvature
from bayesws.evidence.rows import DenseAccumulator

IN_DOUBLE = 8  # bytes of a number of float64
IN_FLOAT64 = 3 * IN_DOUBLE  # bytes for every number of a factor while its eigenvalues are taken, in three copies
BESIDE = 3  # copies of a block P × P beside H while its determinant is taken: I + Λ^-½ H Λ^-½ and what it is made of
SHARPEST_FIRST = ("full", "layer", "pathway", "kron", "diag")  # kinds of curvature
# of a container's memory: the folder, its limit, what is used, and what of that the kernel gives back on demand
CONTAINERS = (
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("", "memory.max", "memory.current", "inactive_file"),
)


def memory_at_hand(device: torch.device) -> int:
    """Bytes that can still be taken on a device, what torch keeps for itself there included.

    Of the processor's memory it is what the machine can give without swapping, or, where that is less, what the limit
    of the process's container leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *left_by_containers()])


def left_by_containers(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What the memory limit of every control group around this process leaves, bytes; none where there is no limit.

    Args:
        groups: the process's groups, lines "number:controllers:path".
        root: where the groups' files are.
    """
    lines = groups.read_text().splitlines() if groups.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        for folder, limit, used, given_back in CONTAINERS:
            if controllers != folder:
                continue
            inside = PurePosixPath(path.lstrip("/"))
            for group in (root / folder / part for part in (inside, *inside.parents)):
                bound, taken = _number(group / limit), _number(group / used)
                if bound is not None and taken is not None:
                    yield max(0, bound - taken + _entry(group / "memory.stat", given_back))


def refuse_what_does_not_fit(
    layers: Layers, curvature: Curvature, rows: Callable[[], tuple[int, int] | None] | None = None
) -> None:
    """Raise for dense blocks of H that the memory at hand cannot hold; nothing is allocated.

    Args:
        rows: how many there are in function space, and of how many numbers each, or None where nobody knows, for "full"
            where that will do: asked only where the whole block does not fit.

    Raises:
        ValueError: what they take, what is at hand, and what would fit.
    """
    some = next((p.parameter for _, d in layers.values() for p in d.pathways), None)
    if some is None:
        return
    needed, at_hand = dense_bytes(layers, curvature, some), memory_at_hand(some.device)
    if needed <= at_hand:
        return
    size = max(block_sizes(accumulators_for(curvature, layers)))
    blocks = f"blocks of up to {size} × {size} numbers"
    if curvature.kind == "full" and rows is not None and (found := rows()) is not None and found[0] < size:
        count, numbers = found
        pathways = sum(len(d.pathways) for _, d in layers.values())
        needed = some.element_size() * count * numbers + matrices_bytes(pathways, count)
        blocks = f"{count} rows of {numbers} numbers"
        if needed <= at_hand:
            return
    milder = SHARPEST_FIRST[SHARPEST_FIRST.index(curvature.kind) + 1 :] if curvature.kind != "kron" else ()
    fitting = [kind for kind in milder if _least_bytes(layers, kind, some) <= at_hand]
    instead = (
        f"try curvature={fitting[0]!r}, about {in_bytes(_least_bytes(layers, fitting[0], some))}" if fitting else ""
    )
    if curvature.exact_up_to:
        instead = "lower exact_up_to"
    raise ValueError(
        f"curvature={curvature.kind!r} takes {in_bytes(needed)}, for {blocks}, and "
        f"{in_bytes(at_hand)} are at hand: {instead or 'train fewer parameters (requires_grad_(False) for the others)'}"
    )


def block_sizes(accumulators: Iterable[Accumulator]) -> list[int]:
    """P of every dense block P × P; as often as there are columns that are summed one by one."""
    return [a.size for a in accumulators if isinstance(a, DenseAccumulator) for _ in a.keys]


def dense_bytes(layers: Layers, curvature: Curvature, like: Tensor) -> int:
    """Bytes of all dense blocks of H, and of what their evidence takes beside them, in a tensor's type."""
    sizes = block_sizes(accumulators_for(curvature, layers))
    return like.element_size() * (sum(p**2 for p in sizes) + BESIDE * max(sizes, default=0) ** 2)


def matrices_bytes(pathways: int, rows: int) -> int:
    """Bytes of the Gram matrices of so many pathways, and of what their evidence takes beside them."""
    return IN_DOUBLE * rows**2 * (pathways + BESIDE)


def in_bytes(size: float) -> str:
    """Bytes as people say them.

    >>> in_bytes(499e12), in_bytes(2.04e9), in_bytes(12)
    ('499 TB', '2.0 GB', '12 bytes')
    """
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= unit:
            return f"{size / unit:.{0 if size >= 10 * unit else 1}f} {name}"
    return f"{size:.0f} bytes"


def _least_bytes(layers: Layers, kind: str, like: Tensor) -> int:
    """Bytes of another curvature, without a look at data: factors of kernels are told by their weights' shapes."""
    found = dense_bytes(layers, Curvature(kind), like)
    shapes = [p.parameter.shape for _, d in layers.values() for p in d.pathways]
    if kind == "kron":
        found += like.element_size() * sum(map(_squares, shapes)) + IN_FLOAT64 * max(map(_squares, shapes))
    return found + like.element_size() * sum(shape.numel() for shape in shapes)  # eigenvalues, a diagonal


def _squares(shape: Sequence[int]) -> int:
    """Numbers of A and B of a weight (fan_out, ...)."""
    rows = shape[0] if shape else 1
    columns = int(torch.Size(shape).numel() / max(1, rows))
    return rows**2 + columns**2


def _number(file: Path) -> int | None:
    """What a file of one number says; None where there is none, or "max"."""
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else None


def _entry(file: Path, key: str) -> int:
    """The number after a key in a file of lines "key number"; 0 where it is not there."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [key]), 0)
