"""The machine that plans are made on: what it computes with, how much that holds, and how fast it multiplies."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from lit_llm.planning.gpus import Gpu, find_gpu, matching_gpu

GIB = 2**30
_SIDES = {"cpu": 512, "cuda": 4096}  # of the matrices whose product is timed
_REPEATS = 5
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


class Hardware(NamedTuple):
    """What a run is planned for."""

    name: str
    """Of one device, as a person calls it."""
    kind: Literal["accelerator", "cpu"]
    """Whose kernels run."""
    devices: int
    """That there are; 1 for all cores of a CPU."""
    gpu: Gpu
    """Speed and memory of one device."""
    measured: str | None = None
    """The arithmetic in which the speed was measured here; None: it is the peak of a datasheet."""


def named_gpu(name: str) -> Hardware:
    """A GPU of the table.

    Raises:
        UserError: it is not in the table.
    """
    full, gpu = find_gpu(name)
    return Hardware(full, "accelerator", 1, gpu)


def this_machine(dtype: torch.dtype) -> Hardware:
    """The GPUs of this machine, or its CPU where it has none.

    Args:
        dtype: of matrix products, whose speed is measured where no table has it, which takes a moment.
    """
    arithmetic = str(dtype).removeprefix("torch.")
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        known, devices, memory = matching_gpu(about.name), torch.cuda.device_count(), about.total_memory / GIB
        if known is not None:
            gpu = find_gpu(known)[1]._replace(memory_gib=memory)
            return Hardware(about.name, "accelerator", devices, gpu)
        return Hardware(about.name, "accelerator", devices, Gpu(measured_flops("cuda", dtype), memory), arithmetic)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"this machine's CPU ({cores} core{'s' if cores > 1 else ''})"
    return Hardware(name, "cpu", 1, Gpu(measured_flops("cpu", dtype), memory_gib()), arithmetic)


def measured_flops(device: Literal["cpu", "cuda"], dtype: torch.dtype) -> float:
    """Floating-point operations of a matrix product in a second, the best of some."""
    side = _SIDES[device]
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def memory_gib() -> float:
    """Memory of this machine in GiB, or what its container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _MEMORY_LIMITS):
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return total / GIB
