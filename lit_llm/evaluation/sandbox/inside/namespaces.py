"""A view of the system in which there is next to nothing: namespaces of the process's own. Linux 5.14 or newer.

The user namespace comes first and allows the others: processes (the program sees its own alone), mounts (an empty
root, the interpreter and the libraries read-only, a small temporary folder), network (not even a loopback), host name
and System V objects. Where we are root, programs run as the host's nobody, because much of what the kernel allows
root, such as writing below /proc/sys or starting any number of processes, hangs on the number of the user and not on
capabilities.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from . import system

_NEW_MOUNTS, _NEW_CGROUP, _NEW_HOST_NAME, _NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_ALL = _NEW_USER | _NEW_MOUNTS | _NEW_CGROUP | _NEW_HOST_NAME | _NEW_IPC | _NEW_PROCESSES | _NEW_NETWORK

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
_MOUNT_SETATTR = 442  # the same number on every processor
_AT_RECURSIVE = 0x8000

NOBODY = 65534
PROGRAM_USER, TESTS_USER = 1000, 1001
"""Who the program and its tests are inside, where root maps them to users outside: nobody, and one without a name."""
OUTSIDE = {PROGRAM_USER: NOBODY, TESTS_USER: NOBODY - 1}
_DEVICES = ("null", "zero", "full", "random", "urandom")


def unshare(root: bool) -> None:
    """Enter new namespaces; the next process that is started is the first of its own.

    Args:
        root: This process is root, and maps itself and the two users of `OUTSIDE`.

    Raises:
        OSError: the system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    if not root:
        system.call("unshare", _ALL)
        Path("/proc/self/setgroups").write_text("deny")
        _map_users(os.getpid(), f"0 {user} 1", f"0 {group} 1")
        return
    # who has entered a user namespace may no longer map others than itself: a process that has not does
    ours, theirs = os.pipe()
    this = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        os.close(theirs)
        status = 1
        try:
            os.read(ours, 1)
            users = "\n".join(["0 0 1", *(f"{inner} {outer} 1" for inner, outer in OUTSIDE.items())])
            _map_users(this, users, users)
            status = 0
        finally:
            os._exit(status)
    os.close(ours)
    try:
        system.call("unshare", _ALL)
    finally:
        os.close(theirs)
        _, status = os.waitpid(mapper, 0)
    if status:
        raise PermissionError(f"the users {', '.join(map(str, OUTSIDE.values()))} cannot be mapped")


def _map_users(process: int, users: str, groups: str) -> None:
    Path(f"/proc/{process}/uid_map").write_text(users)
    Path(f"/proc/{process}/gid_map").write_text(groups)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    system.call("mount", *encoded, ctypes.c_ulong(flags), options.encode())


def _bind_read_only(source: str, target: str) -> None:
    _mount(source, target, None, _BIND | _RECURSIVE)
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SUID | _NO_DEVICES, 0, 0, 0)
    system.call("syscall", _MOUNT_SETATTR, -100, target.encode(), _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))


def enter_empty_root(visible: list[str], disk: int) -> None:
    """Leave the file system of the host for one of the process's own.

    Args:
        visible: Files and folders of the host that are to be seen at their places, read-only.
        disk: Bytes of the temporary folder, the only place that can be written.

    Raises:
        OSError: the system does not allow it.
    """
    _mount("none", "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,mode=755")
    Path("/tmp/host").mkdir()
    system.call("pivot_root", b"/tmp", b"/tmp/host")
    os.chdir("/")
    for folder in ("proc", "dev", "tmp"):
        Path("/", folder).mkdir()
    _mount("tmpfs", "/tmp", "tmpfs", _NO_SUID | _NO_DEVICES, f"size={disk},nr_inodes=4096,mode=1777")
    for place in visible:
        target, source = Path(place), Path("/host" + place)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
            continue
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        _bind_read_only(str(source), place)
    for device in _DEVICES:
        Path("/dev", device).touch()
        _mount(f"/host/dev/{device}", f"/dev/{device}", None, _BIND)
    Path("/dev/shm").symlink_to("/tmp")
    # the first process of a namespace alone may see its processes, and no program may make namespaces of its own
    quiet = _NO_SUID | _NO_DEVICES | _NO_EXEC
    _mount("proc", "/proc", "proc", quiet)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    _mount("none", "/proc", None, _REMOUNT | _BIND | _READ_ONLY | quiet)
    system.call("umount2", b"/host", _DETACH)
    Path("/host").rmdir()
    _mount("none", "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    os.chdir("/tmp")
