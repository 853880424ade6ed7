"""Checkpoints of sharded weights (FSDP2) are those of one process: whole tensors under the same names and numbers.

A run can therefore resume on any number of processes, sharded or not, and every checkpoint can be loaded.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def whole(state: Any, keep: bool) -> Any:
    """Replace the sharded tensors of a state with whole ones on the CPU, or with None unless `keep`.

    All processes have to call it with the same state.
    """

    def gather(tensor: DTensor) -> torch.Tensor | None:
        gathered = tensor.full_tensor()
        return gathered.cpu() if keep else None

    return tree_map_only(DTensor, gather, state)


def shard(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights, of which each process keeps its part."""
    own = model.state_dict()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  is no mapping
                own[name].copy_(shard(weights.get_tensor(name), own[name]))


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Load an optimizer's whole state, of which each process keeps its part."""
    saved = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved["state"] = {
        number: {
            name: shard(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in state.items()
        }
        for number, state in saved["state"].items()
    }
    optimizer.load_state_dict(saved)
