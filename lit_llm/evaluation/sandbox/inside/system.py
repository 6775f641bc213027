"""Calls to the kernel for which Python has no functions, and the limits of a process. Linux only."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

_SET_DEATH_SIGNAL = 1
_SET_DUMPABLE = 4
_DROP_FROM_BOUNDING_SET = 24
_SET_SECURE_BITS = 28
_SET_CHILD_SUBREAPER = 36
_SET_NO_NEW_PRIVILEGES = 38
_NO_ROOT_LOCKED = 0b1111  # neither being root nor becoming it, nor ceasing to be, changes capabilities
_CAPABILITIES_3 = 0x20080522


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library.

    Raises:
        OSError: it failed; the message has its name.
    """
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def prctl(option: int, value: int) -> None:
    """Call prctl(2) with one value."""
    call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends; a change of user afterwards undoes it."""
    prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of all that descends from it and loses its parent."""
    prctl(_SET_CHILD_SUBREAPER, 1)


def set_traceable(traceable: bool) -> None:
    """Whether processes of the same user may read this one's memory, or trace it."""
    prctl(_SET_DUMPABLE, int(traceable))


KILL = 1 << 5
"""The capability to signal processes of other users."""


def drop_privileges(user: int | None, kept: int = 0) -> None:
    """Give up all capabilities for good but those that are kept, and become another user where one is named."""
    try:
        prctl(_SET_SECURE_BITS, _NO_ROOT_LOCKED)
        for capability in range(64):
            prctl(_DROP_FROM_BOUNDING_SET, capability)
    except OSError:
        pass  # there is no further capability, or none that this process could give away
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    # effective, permitted and inheritable ones, first the lower halves
    call("capset", header, (ctypes.c_uint32 * 6)(kept, kept, 0))
    prctl(_SET_NO_NEW_PRIVILEGES, 1)


def limit_process(limits: dict[str, Any], tasks: int) -> None:
    """Set the limits of this process and of those it will start.

    Args:
        limits: `memory` and `disk` in bytes, `cpu` in seconds, `open_files`.
        tasks: The processes and threads that its user may have.
    """
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_CPU, limits["cpu"]),
        (resource.RLIMIT_FSIZE, limits["disk"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, tasks),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
