"""Options of the steps that look at one document at a time."""

from __future__ import annotations

from typing import Any

from lit_llm.config.extraction import ExtractConfig

DOCUMENT_STEPS: dict[str, type[Any]] = {
    "extract": ExtractConfig,
}
"""The dataclass of options of each step, by the name that it has in a recipe."""
