"""What a check of safety has found, in a form that every report shows alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_llm.objectives import accuracy_interval


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        header: names of the columns.
        rows: their cells.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class About:
    """What a check is.

    Attributes:
        title: of its section.
        shows: what its numbers show.
        does_not_show: what they do not.
    """

    title: str
    shows: str
    does_not_show: str


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        about: what the check is.
        summary: the result in a line, for the model card.
        values: all numbers, for JSON.
        tables: those of the report.
        notes: sentences below them.
    """

    about: About
    summary: str
    values: dict[str, Any]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default_factory=list)


def rate(found: int, total: int) -> dict[str, Any]:
    """A share with its 95% interval (Wilson), for JSON; the share of none is None."""
    return {
        "found": found,
        "of": total,
        "rate": found / total if total else None,
        "interval": accuracy_interval(found, total),
    }


def shown_rate(values: dict[str, Any]) -> str:
    """A rate as a cell of a table: 12.5% (3 of 24; 4.3% to 31.0%)."""
    if not values["of"]:
        return "not measured"
    low, high = values["interval"]
    return f"{values['rate']:.1%} ({values['found']:,} of {values['of']:,}; {low:.1%} to {high:.1%})"
