"""More than 500 programs that do harm, or claim to have passed: 30 kinds, each with several parameters.

Every program comes with a test that passes if it has got what it is after: it has read the file, reached the server,
started its thousand processes, or had a wrong answer counted as right. So none may pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hostile_claims import claims, early_ends, equal_to_all, exit_hooks, patches, searches
from hostile_forms import MARK, PORTS, Hostile, Target
from hostile_reach import (
    connections,
    environments,
    kills,
    limits,
    links,
    listeners,
    privileges,
    read_files,
    reads_input,
    shells,
    tracing,
    writes_outside,
)
from hostile_use import (
    bombs,
    crashes,
    daemons,
    deep,
    endless,
    floods,
    fork_bombs,
    full_disks,
    ignored_signals,
    many_threads,
    memory_bombs,
    slow_patterns,
)

from lit_llm.evaluation.sandbox import Program

__all__ = ["MARK", "PORTS", "Hostile", "Target", "hostile_programs"]


def hostile_programs(target: Target) -> list[Hostile]:
    """All of them, kind by kind."""
    kinds: list[tuple[Callable[..., Iterator[Program]], bool]] = [
        (fork_bombs, False),
        (many_threads, False),
        (memory_bombs, False),
        (endless, False),
        (ignored_signals, False),
        (floods, False),
        (full_disks, False),
        (read_files, True),
        (environments, True),
        (kills, False),
        (connections, True),
        (listeners, False),
        (writes_outside, True),
        (links, True),
        (tracing, False),
        (early_ends, False),
        (patches, False),
        (equal_to_all, False),
        (claims, False),
        (searches, False),
        (daemons, False),
        (shells, True),
        (deep, False),
        (slow_patterns, False),
        (crashes, False),
        (exit_hooks, False),
        (limits, False),
        (reads_input, False),
        (bombs, False),
        (privileges, False),
    ]
    return [Hostile(make.__name__, program) for make, aimed in kinds for program in (make(target) if aimed else make())]
