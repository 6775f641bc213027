"""Runs a function in several processes that talk over gloo."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def _enter(rank: int, function: Callable[..., None], world_size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    store = dist.FileStore(str(folder / "store"), world_size)
    # a rank that fails or hangs fails the test instead of holding it up
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timedelta(seconds=90))
    function(*arguments)
    dist.destroy_process_group()


def run_ranks(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any) -> None:
    """Call `function(*arguments)` in `world_size` processes; an exception in one of them is raised here."""
    (folder / "store").unlink(missing_ok=True)
    multiprocessing.start_processes(
        _enter, (function, world_size, folder, arguments), nprocs=world_size, start_method="fork"
    )


def mesh_of(data_parallel: int, tensor_parallel: int) -> DeviceMesh:
    """The mesh that the fsdp strategy makes."""
    return init_device_mesh(
        "cpu", (data_parallel, tensor_parallel), mesh_dim_names=("data_parallel", "tensor_parallel")
    )
