"""Where programs run that a model has written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_llm.config.bounds import check_at_least


@dataclass
class SandboxConfig:
    """How programs that a model has written are kept from everything else on this machine."""

    isolation: Literal["auto", "bwrap", "namespaces", "limits"] = "auto"
    """How: bwrap takes bubblewrap; namespaces takes the kernel's user namespaces, and needs Linux 5.14; auto takes
    what this system has of the two, and else refuses. limits is for systems that have neither: it limits time, memory
    and processes, but hides no file, closes no network, and cannot stop a program from ending other processes of its
    user."""
    wall_seconds: float = 10.0
    """A program and its tests are ended after this many seconds."""
    cpu_seconds: int = 5
    """A process of a program is ended after this many seconds of processor time."""
    memory_mb: int = 512
    """Memory of each process of a program, and of all of them together."""
    processes: int = 16
    """Processes and threads that a program may have at a time."""
    disk_mb: int = 32
    """Size of a file that a program writes, and of its temporary folder; the folder has no bound with limits."""
    open_files: int = 64
    """Files that a process of a program may have open."""
    output_kb: int = 256
    """A program that prints more than this is ended."""
    interpreter: str | None = None
    """The Python that runs programs, with its standard library alone; the one of this process by default."""

    def __post_init__(self) -> None:
        check_at_least(self, 0.1, "wall_seconds")
        check_at_least(self, 1, "cpu_seconds", "disk_mb", "output_kb", "processes")
        check_at_least(self, 16, "open_files")
        check_at_least(self, 64, "memory_mb")
