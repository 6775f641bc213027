"""What is known of where a document came from, kept with it into the shards."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document came from. Rows have what is known in columns, or fields, of these names."""

    id: str
    """Names the document: as its row does, else its path from the corpus root, with `:row` for a row."""
    source: str | None = None
    """Name of the source it was read from."""
    url: str | None = None
    """Address."""
    date: str | None = None
    """Date or time in ISO 8601."""
    license: str | None = None
    """What its source says of its licence."""
    language: str | None = None
    """Code of its language."""
    digest: str | None = None
    """Digest of its text as the source had it."""

    @classmethod
    def of_row(cls, row: Mapping[str, Any], key: str) -> Origin:
        """What a row says of itself; `key` names it where it does not."""
        values = {name: _in_words(row.get(name)) for name in ORIGIN_FIELDS}
        return replace(cls(key), **{name: value for name, value in values.items() if value is not None})

    def __str__(self) -> str:
        return ", ".join(
            [self.id, *(f"{name} {getattr(self, name)}" for name in ORIGIN_FIELDS[1:] if getattr(self, name))]
        )


ORIGIN_FIELDS = tuple(field.name for field in fields(Origin))
"""The names of the fields, `id` first."""
_LONGEST = 4096  # characters: what is longer is no name


def _in_words(value: Any) -> str | None:
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        return None
    return value.encode("utf-8", "replace").decode()
