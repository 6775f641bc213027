"""What a verifier says of a generated answer, and how it reads the row of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_llm.config import UserError


@dataclass(frozen=True)
class Verdict:
    """Whether a generated text is right, and why not, in one line."""

    correct: bool
    reason: str = ""


Verifier = Callable[[str, Mapping[str, Any]], Verdict]
"""Reads a generated text and the row of the task that it answers."""


def field(row: Mapping[str, Any], name: str, kinds: type | tuple[type, ...] = str) -> Any:
    """A field of a row.

    Args:
        row: The row of a task.
        name: The field's.
        kinds: The types that its value may have; a bool is no number.

    Raises:
        UserError: the field is missing, or of another type.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if name not in row:
        raise UserError(f"a row of the task has no field {name}; it has {', '.join(sorted(map(str, row))) or 'none'}")
    value = row[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"the field {name} of a row must be {expected}, not {type(value).__name__}: {value!r:.60}")
    return value


def field_texts(row: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a text or a list of texts, as a list.

    Raises:
        UserError: the field is missing, empty, or holds something else.
    """
    value = field(row, name, (str, list))
    texts = [value] if isinstance(value, str) else value
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise UserError(
            f"the field {name} of a row must be a text or a list of texts, none of them empty: {value!r:.80}"
        )
    return texts
