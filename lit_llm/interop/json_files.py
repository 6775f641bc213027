"""This file reads the JSON files of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.json_text import parse_json

MOST_BYTES = 64 * 2**20
"""The largest size of a file that is read; the largest published indices have some 10 MiB."""


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: the file is too large, is not JSON, or holds no object.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES:,} bytes; that is no file of a model folder")
    try:
        values = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object")
    return values
