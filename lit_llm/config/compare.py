"""Which runs are compared."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CompareConfig:
    """Show the curves of several runs together, and what differs in their configurations and ends."""

    runs: list[str] = field(default_factory=list)
    """Run folders, two or more; before the other options they may stand as they are: compare.py RUN RUN."""
    output: str = "compare.html"
    """Page to write; it needs no other file and no network."""
