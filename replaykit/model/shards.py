"""A model whose weights are shared out among processes (FSDP2): each holds a part of every tensor.

    network = load_model(name, train=True, shards=2)   # in both of two processes
    local(parameter)                      # what is here, in the memory of the parameter itself
    everywhere(local_sum, network)        # a sum over what is here, over all processes
    whole_weights(network)                # all of it, in the first process

transformers loads such a model part by part (``DistributedConfig``); torch gathers a layer when it
is used, and takes the mean of the gradients over the processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn


def part_name() -> str:
    """How files of this process's part are named, such as ``0-of-2``."""
    return f"{distributed.get_rank()}-of-{distributed.get_world_size()}"


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one that several processes hold together."""
    return hasattr(tensor, "to_local")


def is_sharded(network: nn.Module) -> bool:
    """Whether a model has such tensors."""
    return any(is_shard(parameter) for parameter in network.parameters())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor is in this process, without gradients, in the same memory; all of one that
    is not shared out.
    """
    own: Any = tensor.detach()
    if is_shard(own):
        own = own.to_local()
    return own


def everywhere(sums: torch.Tensor, *, sharded: bool) -> torch.Tensor:
    """Sums over what is in this process, added up over all of them where the model is sharded."""
    if sharded:
        distributed.all_reduce(sums)
    return sums


def like(tensor: torch.Tensor, parameter: Any) -> torch.Tensor:
    """What is in this process as a part of a tensor that is shared out as the parameter is."""
    if not is_shard(parameter):
        return tensor
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        tensor,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def whole_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """All weights by name, on the CPU of the first process; all processes have to ask, and the
    others get nothing.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(network, options=options)
