"""Tensors that are spread over ranks: their parts, and how they become whole again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_spread(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether a tensor is spread over ranks.

    What makes such tensors takes most of a second to import, and only a process that has imported it has any.
    """
    made_by = sys.modules.get("torch.distributed.tensor")
    return made_by is not None and isinstance(tensor, made_by.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter of `model` is spread over ranks, so that every rank must enter its forward pass."""
    return any(map(is_spread, model.parameters()))


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, for elementwise work without communication; a plain tensor is its own part."""
    return tensor.to_local() if is_spread(tensor) else tensor


def shard_like(full: Tensor, parameter: Tensor) -> Tensor:
    """Lay out `full` as `parameter` is, without communication.

    Args:
        full: the whole tensor, the same on every rank.
        parameter: a tensor of that shape, sharded or plain.

    Returns:
        `full` itself for a plain parameter, else a DTensor of this rank's part on the parameter's device.
    """
    if not is_spread(parameter):
        return full
    from torch.distributed.tensor import DTensor

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
    if not is_spread(parameter):
        return part
    from torch.distributed.tensor import DTensor

    sharded = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return sharded.full_tensor()
