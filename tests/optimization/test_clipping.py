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

from lit_llm.optimization import clip_gradients, gradient_norm


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


@pytest.mark.parametrize("max_norm", [0.5, 13.0 - 1e-3, 50.0])
def test_clipping_in_a_loop_of_one_s_own(max_norm: float) -> None:
    """As torch's own on plain tensors; `tests/model/test_parallel.py` has the sharded ones."""
    both = [[torch.nn.Parameter(torch.zeros(shape)) for shape in ((2,), (2, 1), (3,))] for _ in range(2)]
    for parameters in both:
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([[4.0], [12.0]])
    assert clip_gradients(both[0], max_norm).item() == 13.0
    torch.nn.utils.clip_grad_norm_(both[1], max_norm)
    for one, other in zip(both[0][:2], both[1][:2], strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert gradient_norm([p.grad for p in both[0][:2]]).item() == pytest.approx(min(13.0, max_norm), rel=1e-5)
    assert both[0][2].grad is None


def test_what_cannot_be_clipped() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert clip_gradients([parameter], 1.0).item() == 0.0
    parameter.grad = torch.tensor([float("inf"), 2.0])
    assert clip_gradients([parameter], 1.0).item() == float("inf")
    assert parameter.grad.tolist() == [float("inf"), 2.0]
    with pytest.raises(ValueError, match="above 0"):
        clip_gradients([parameter], 0.0)


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
