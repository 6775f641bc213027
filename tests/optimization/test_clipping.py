"""The norm of a gradient where its parts lie: on one device, over ranks, and in host memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_llm.optimization.clipping import gradient_norm


@pytest.fixture
def eight_ranks() -> Iterator[None]:
    """Rank 0 of eight that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


def test_of_plain_gradients() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0], [12.0]])]
    assert gradient_norm(gradients).item() == 13.0
    assert gradient_norm([]).item() == 0.0


@pytest.mark.usefixtures("eight_ranks")
def test_parts_in_host_memory_are_reduced_on_the_device_of_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloaded weights lie in host memory, of which NCCL, started alone, knows nothing. Meta stands for CUDA."""
    reduced: list[str] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: reduced.append(tensor.device.type))
    mesh = DeviceMesh("meta", list(range(8)))
    shape = torch.Size([16, 4])
    spec = DTensorSpec(mesh, (Shard(0),), tensor_meta=TensorMeta(shape, (4, 1), torch.float32))
    norm = gradient_norm([DTensor(torch.zeros(2, 4), spec, requires_grad=False)])
    assert reduced == ["meta"] and norm.device.type == "meta"
