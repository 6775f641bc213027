"""What there is on this machine that a program in a sandbox could have changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile_programs import MARK, PORTS, Target

_PLACES = ("/", "/etc", "/root", "/home", "/var/tmp", "/tmp", "/usr/lib", "/opt", "/dev", "/dev/shm", "/run")


@dataclass
class Host:
    """Something to steal, a server that counts, and the state of this process and machine."""

    target: Target
    connected: int = 0

    def state(self) -> dict[str, Any]:
        """All that has to be as it was."""
        places = (*_PLACES, str(Path(__file__).parent), str(Path(__file__).parents[2]), str(Path.cwd()))
        return {
            "files outside": [str(file) for place in places for file in Path(place).glob(f"{MARK}*")],
            "the file": _described(self.target.file),
            "its folder": sorted(map(str, self.target.file.parent.iterdir())),
            "the project": {str(file): _described(file) for file in Path(__file__).parent.glob("*.py")},
            "the standard library": _described(Path(os.__file__)),
            "connections": self.connected,
            "listening ports": [port for port in PORTS if _listens(port)],
            "processes": sorted(_descendants_of(os.getpid()) | _in_other_namespaces()),
            "folder": str(Path.cwd()),
            "environment": dict(os.environ),
            "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"],
            "signals": [signal.getsignal(kind) for kind in signal.valid_signals()],
            "open files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            "threads": threading.active_count(),
            "user": (os.getresuid(), os.getresgid()),
            "host name": socket.gethostname(),
        }


def _described(file: Path) -> tuple[int, str]:
    return file.stat().st_mode, hashlib.sha256(file.read_bytes()).hexdigest()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _processes() -> dict[int, int]:
    """The parent of each process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return parents


def _descendants_of(ancestor: int) -> set[int]:
    parents, found, front = _processes(), set(), {ancestor}
    while front:
        front = {process for process, parent in parents.items() if parent in front}
        found |= front
    return found


def _in_other_namespaces() -> set[int]:
    """Processes that have a namespace for processes which is not this one's: what is left of a sandbox, even if its
    parents have ended."""
    own, found = Path("/proc/self/ns/pid").stat().st_ino, set()
    for process in _processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/ns/pid").stat().st_ino != own:
                found.add(process)
    return found


@contextlib.contextmanager
def prepared_host() -> Iterator[Host]:
    """A secret in the environment and in a file, and a server on the loopback."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="secret-") as folder, socket.create_server(("127.0.0.1", 0)) as server:
        file = Path(folder, "key")
        file.write_text(secret)
        file.chmod(0o644)
        Path(folder).chmod(0o777)
        host = Host(Target(secret, file, server.getsockname()[1]))
        os.environ["LIT_LLM_SECRET"] = secret

        def count() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()
                    host.connected += 1

        counter = threading.Thread(target=count, daemon=True)
        counter.start()
        try:
            yield host
        finally:
            del os.environ["LIT_LLM_SECRET"]
            server.shutdown(socket.SHUT_RDWR)
            counter.join()
