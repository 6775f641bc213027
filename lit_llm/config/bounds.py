"""Bounds of options, checked where a dataclass of them is made."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_llm.config.errors import UserError


def given(options: Any, *names: str) -> list[str]:
    """Those of some fields of a dataclass that have another value than by default."""
    kinds = {field.name: field for field in dataclasses.fields(options)}
    found = []
    for name in names:
        kind = kinds[name]
        default = kind.default if kind.default_factory is dataclasses.MISSING else kind.default_factory()
        if getattr(options, name) != default:
            found.append(name)
    return found


def check_at_least(options: object, least: float, *names: str) -> None:
    """Refuse a field below `least`; null passes.

    Raises:
        UserError: names the first such field.
    """
    for name in names:
        value = getattr(options, name)
        if isinstance(value, int | float) and value < least:
            raise UserError(f"{name} is {value}; it must be at least {least:g}")


def check_seed(seed: int) -> None:
    """Refuse a seed that random streams do not take.

    Raises:
        UserError: it has more than 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"seed is {seed}; it must be from -2^63 to 2^63 - 1")


def check_shares(options: object, *names: str) -> None:
    """Refuse a field, or a number in a list, outside of 0 to 1; null passes.

    Raises:
        UserError: names the first such field.
    """
    for name in names:
        value = getattr(options, name)
        for share in value if isinstance(value, list) else [value]:
            if isinstance(share, int | float) and not 0 <= share <= 1:
                raise UserError(f"{name} is {value}; a share must be between 0 and 1")


def check_order(options: object, low: str, high: str) -> None:
    """Refuse a lower bound above its upper bound; null passes.

    Raises:
        UserError: names both fields.
    """
    least, most = getattr(options, low), getattr(options, high)
    if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
        raise UserError(f"{low} is {least}, above {high}, which is {most}; no document could pass")


def check_no_blank(options: object, *names: str) -> None:
    """Refuse an empty entry in a list of texts.

    Raises:
        UserError: names the first such field.
    """
    for name in names:
        if any(isinstance(entry, str) and not entry.strip() for entry in getattr(options, name)):
            raise UserError(f"{name} has an empty entry")
