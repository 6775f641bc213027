"""Rewards that the tests of PPO give to runs by name, as a user would."""

from __future__ import annotations

from itertools import count
from typing import Any

_calls = count()


def letters(prompts: list[str], completions: list[str], **fields: Any) -> list[float]:
    """How often an answer has the letter e: all that a policy has to find out."""
    return [float(text.count("e")) for text in completions]


def wanted_length(prompts: list[str], completions: list[str], wanted: list[int], **fields: Any) -> list[float]:
    """Distance of an answer's length from a field of its row."""
    return [-float(abs(len(text) - number)) for text, number in zip(completions, wanted, strict=True)]


def grows(prompts: list[str], completions: list[str], **fields: Any) -> list[float]:
    """Ten times as much at every call."""
    return [10.0 ** next(_calls)] * len(prompts)


def fails(prompts: list[str], completions: list[str], **fields: Any) -> list[float]:
    """Has a bug."""
    raise KeyError("no such\nkey")


def too_few(prompts: list[str], completions: list[str], **fields: Any) -> list[float]:
    """Forgets one."""
    return [1.0] * (len(prompts) - 1)


def nothing(prompts: list[str], completions: list[str], **fields: Any) -> list[float | None]:
    """Has no opinion of the second."""
    return [0.0, None, *[0.0] * (len(prompts) - 2)]


def not_a_number(prompts: list[str], completions: list[str], **fields: Any) -> list[float]:
    """Divides by zero, in effect."""
    return [float("nan")] * len(prompts)


def takes_no_fields(prompts: list[str], completions: list[str]) -> list[float]:
    """Forgets that fields come, too."""
    return [0.0] * len(prompts)


number = 3
