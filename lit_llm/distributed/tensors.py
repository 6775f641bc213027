"""Tensors that are spread over ranks: their parts, and how they become whole again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter of `model` is spread over ranks, so that every rank must enter its forward pass."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, for elementwise work without communication; a plain tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(full: Tensor, parameter: Tensor) -> Tensor:
    """Lay out `full` as `parameter` is, without communication.

    Args:
        full: the whole tensor, the same on every rank.
        parameter: a tensor of that shape, sharded or plain.

    Returns:
        `full` itself for a plain parameter, else a DTensor of this rank's part on the parameter's device.
    """
    if not isinstance(parameter, DTensor):
        return full
    mesh, part = parameter.device_mesh, full
    # tensor parallelism, the last dimension, cut the tensor first; data parallelism cut what was left of it
    for dim in reversed(range(mesh.ndim)):
        placement: Any = parameter.placements[dim]
        if not placement.is_replicate():
            chunks = part.chunk(mesh.size(dim), dim=placement.dim)
            rank = mesh.get_local_rank(dim)
            part = chunks[rank] if rank < len(chunks) else part.narrow(placement.dim, 0, 0)
    return DTensor.from_local(
        part.contiguous().to(parameter.device),
        mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def whole_like(part: Tensor, parameter: Tensor) -> Tensor:
    """Gather the whole tensor from the ranks' parts, which are laid out as `parameter` is. Every rank must call it."""
    if not isinstance(parameter, DTensor):
        return part
    sharded = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return sharded.full_tensor()
