"""How the ranks of a sharded run are arranged: replicas x shards x tensor-parallel groups."""

from __future__ import annotations

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
