"""Counts what ranks send each other, with one process that stands for the first rank of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "all_reduce": ("allreduce_", "all_reduce", "all_reduce_"),
    "all_gather": ("_allgather_base_", "all_gather_into_tensor", "allgather_into_tensor_coalesced_"),
    "reduce_scatter": ("_reduce_scatter_base_", "reduce_scatter_tensor", "reduce_scatter_tensor_coalesced_"),
    "all_to_all": ("alltoall_base_", "all_to_all_single", "alltoall_"),
    "broadcast": ("broadcast_", "broadcast"),
}


class Collectives(TorchDispatchMode):
    """Within it `counts` holds how many collectives of each kind were called, and `numbers` how many numbers they took.

    Args:
        group_size: count those among so many ranks alone; None: every one.
    """

    def __init__(self, group_size: int | None = None) -> None:
        super().__init__()
        self.group_size = group_size
        self.counts: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__
            for kind, names in KINDS.items():
                if name in names and self.group_size in (None, _size(args)):
                    self.counts[kind] += 1
                    self.numbers[kind] += max(_tensors(args), default=0)
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[int]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.numel()
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _size(args: Any) -> int | None:
    for value in args:
        if isinstance(value, str) and value not in ("sum", "avg", "max", "min"):
            return dist.distributed_c10d._resolve_process_group(value).size()
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return dist.ProcessGroup.unbox(value).size()
    return None


@contextmanager
def pretended_ranks(world_size: int) -> Iterator[None]:
    """Be the first of many ranks that are not there: what they would send is whatever lies in memory."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
