"""What the C library does with memory that a step on the CPU has freed."""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OF_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what is freed for the next step, instead of giving it back to the system.

    Else glibc gives back large tensors, or all of them, depending on which it has seen freed first, and each step
    waits for their pages to be zeroed again. The peak is the same.

    Returns:
        Whether it does so from now on: not without glibc, nor where the environment says what it is to do.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _OF_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # either alone would leave the other where it stands, as it ends their adjustment
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
