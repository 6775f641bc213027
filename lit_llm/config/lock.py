"""A lock that keeps a second process out of a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lit_llm.config.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_OF_ONE_MACHINE = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
"""File systems whose locks every process that can see the folder takes part in."""
_held: set[int] = set()
"""Descriptors of this process's locks. A lock lasts until every process that has inherited one has closed it."""


def _forget() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    # else a loader worker would keep the folder of a process that was killed
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def locked(folder: Path, instead: str) -> Iterator[None]:
    """Keep other processes out of `folder`, which exists, while the block runs.

    The lock is one of the operating system, which takes it back when the process ends in whatever way; the file .lock
    says who holds it. Where the file system has no locks, or those of one machine only, what the file says decides: a
    process of this machine that has ended no longer counts, nor does an earlier start of the same SLURM job.

    Args:
        folder: the folder.
        instead: what to do instead, for the error.

    Raises:
        UserError: another process holds it.
    """
    path = folder / NAME
    descriptor, taken = _take(path)
    _held.add(descriptor)
    try:
        owner = _owner(descriptor)
        if taken is False or (owner is not None and _may_be_at_work(owner, asked=taken is None, folder=folder)):
            raise UserError(_refusal(path, owner, instead, certain=taken is False))
        with contextlib.suppress(OSError):  # on a full disk the lock has no name in it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        try:
            yield
        finally:
            if descriptor in _held:
                path.unlink(missing_ok=True)
    finally:
        if descriptor in _held:  # and not in a child of this process
            _held.discard(descriptor)
            os.close(descriptor)


def _take(path: Path) -> tuple[int, bool | None]:
    """Open the lock file and try to lock it: the file, and whether it is ours now, or None where no locks exist."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        if fcntl is None:
            return descriptor, None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return descriptor, False if error.errno in (errno.EAGAIN, errno.EACCES) else None
        if _is_at(path, descriptor):
            return descriptor, True
        os.close(descriptor)  # whoever held it has deleted the file meanwhile


def _is_at(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _owner(descriptor: int) -> dict[str, Any] | None:
    """The process that the lock file names as its holder, or None if it names nobody."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return {**owner, "pid": int(owner["pid"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _may_be_at_work(owner: dict[str, Any], asked: bool, folder: Path) -> bool:
    """Whether the process that the file names may still run, although the lock could be had.

    Args:
        owner: that process.
        asked: there is no lock to have; the process has to be asked.
        folder: the folder.
    """
    if owner.get("host") == socket.gethostname():
        alive = _started(owner["pid"]) is not None
        same = owner.get("started") in (None, _started(owner["pid"]))  # else the number belongs to another one by now
        return asked and alive and same and owner["pid"] != os.getpid()
    if owner.get("job") is not None and owner["job"] == os.environ.get("SLURM_JOB_ID"):
        return False
    return asked or _kind_of_file_system(folder) not in _OF_ONE_MACHINE


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in the system's clock ticks, or None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "unknown"


def _kind_of_file_system(folder: Path) -> str | None:
    """The name of the file system that holds a path, as in /proc/mounts, or None if it cannot be told."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return None


def _refusal(path: Path, owner: dict[str, Any] | None, instead: str, certain: bool) -> str:
    if owner is None:
        return f"{path.parent} is in use by another process: wait until it ends, or {instead}"
    who = f"process {owner['pid']} on {str(owner.get('host'))[:80]} since {str(owner.get('since'))[:40]}"
    line = f"{path.parent} is in use by {who}: wait until it ends, or {instead}"
    return line if certain else f"{line}; if it no longer runs, which cannot be told from here, delete {path}"
