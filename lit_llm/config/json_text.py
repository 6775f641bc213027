"""JSON from outside, read so that whatever is wrong with it is one readable line."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 200
"""Most lists and objects inside each other; what writes, compares or copies a value recurses as deep as it is."""


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Args:
        text: of any length; bytes are UTF-8, with or without a mark of byte order.

    Raises:
        ValueError: it is no JSON (json.JSONDecodeError, which has line and column), no UTF-8, nested more than
            `MAX_DEPTH` deep, or has an integer of more digits than Python reads. The message is one line.
    """
    try:
        content = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (at byte {error.start:,})") from None
    try:
        value = json.loads(content)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # Python's bound on the digits of integers, whose conversion takes quadratic time
        raise ValueError("it has an integer of thousands of digits") from None
    if content.count("[") + content.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return
        level = [child for each in containers for child in (each.values() if isinstance(each, dict) else each)]
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MAX_DEPTH} deep")
