"""What an optimiser remembers, as named tensors: for a checkpoint."""

from collections.abc import Iterable

import torch
from torch import Tensor


def optimiser_state(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory of every parameter, under "name.index.what"."""
    return {
        f"{name}.{index}.{what}": torch.as_tensor(value)
        for index, remembered in optimiser.state_dict()["state"].items()
        for what, value in remembered.items()
    }


def restore_optimiser(name: str, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put a new optimiser of the same parameters where `optimiser_state` was taken."""
    whole = optimiser.state_dict()
    whole["state"] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{name}."):
            _, index, what = key.split(".")
            whole["state"].setdefault(int(index), {})[what] = tensor
    optimiser.load_state_dict(whole)


def forget(optimiser: torch.optim.Optimizer, kept: Iterable[Tensor]) -> None:
    """Leave out all parameters but those that are kept, groups that are empty then, and what is remembered of them."""
    left = {id(tensor) for tensor in kept}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in left:
                optimiser.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in left]
    optimiser.param_groups[:] = [group for group in optimiser.param_groups if group["params"]]
