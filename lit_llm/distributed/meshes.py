"""How the ranks of a sharded run are arranged: replicas x shards x tensor-parallel groups."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

REPLICAS, SHARDS, TENSOR = "replicas", "data_parallel", "tensor_parallel"


def make_mesh(device_type: str, shards: int, tensor_parallel: int, *, replicas: int = 1) -> DeviceMesh:
    """Arrange all ranks; those next to each other, which share a machine, exchange most.

    Args:
        device_type: of the tensors that they exchange.
        shards: ranks that the weights are cut for.
        tensor_parallel: ranks that share each matrix product.
        replicas: copies of all shards.
    """
    if replicas == 1:
        return init_device_mesh(device_type, (shards, tensor_parallel), mesh_dim_names=(SHARDS, TENSOR))
    return init_device_mesh(device_type, (replicas, shards, tensor_parallel), mesh_dim_names=(REPLICAS, SHARDS, TENSOR))


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part of a mesh along which ranks read different rows: replicas x shards, or shards alone."""
    return mesh[REPLICAS, SHARDS] if REPLICAS in (mesh.mesh_dim_names or ()) else mesh[SHARDS]


def context_group(mesh: DeviceMesh, size: int) -> dist.ProcessGroup:
    """This rank's group of those that share a text: neighbours along the shards. Every rank must call.

    Args:
        mesh: of `make_mesh`.
        size: ranks in a group, which divides the number of shards.
    """
    groups = mesh.mesh.unflatten(-2, (-1, size)).movedim(-2, -1).reshape(-1, size).tolist()
    own, _ = dist.new_subgroups_by_enumeration(groups)
    assert own is not None
    return own
