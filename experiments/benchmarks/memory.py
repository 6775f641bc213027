"""Peak memory of training steps, above what the process holds before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch

# Environment in which memory of 64 KiB and more goes back to the system when it is freed, so that the resident set
# follows what is alive instead of what glibc keeps for later.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def peak_mib(build: Callable[[], Callable[[], None]], device: str, steps: int = 3) -> float:
    """Most MiB that building a step and taking it `steps` times adds: the device's own count on CUDA, the resident set
    sampled every 2 ms on the CPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        _take(build, steps)
        return torch.cuda.max_memory_allocated() / 2**20 - before
    before = peak = _resident_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    _take(build, steps)
    done.set()
    watcher.join()
    return peak - before


def _take(build: Callable[[], Callable[[], None]], steps: int) -> None:
    step = build()
    for _ in range(steps):
        step()


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
