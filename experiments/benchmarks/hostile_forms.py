"""What hostile programs have in common: their two forms, and what on the host they are after."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from lit_llm.evaluation.sandbox import Program

MARK = "lit_llm_hostile"
"""Is in the name of every file that a program tries to write outside."""
PORTS = range(45310, 45330)
"""Where programs listen."""
WRONG = "def add(a, b):\n    return 0\n"


@dataclass(frozen=True)
class Target:
    """What there is on the host to get at."""

    secret: str
    """Stands in the environment of this process and in the file."""
    file: Path
    port: int
    """A server on the loopback that counts who connects."""


@dataclass(frozen=True)
class Hostile:
    """A program of some kind."""

    kind: str
    program: Program


def attack(body: str, before: str = "") -> Program:
    """A program whose function returns something true if it succeeds."""
    source = f"{textwrap.dedent(before)}\ndef attack():\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"
    return Program(source, "assert attack()", ("attack",))


def deceive(source: str) -> Program:
    """A program that has to add, and does not."""
    return Program(textwrap.dedent(source), "assert add(2, 3) == 5\nassert add(20, 22) == 42", ("add",))
