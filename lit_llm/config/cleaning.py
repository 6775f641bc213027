"""Options of the steps that look at one document at a time."""

from __future__ import annotations

from typing import Any

from lit_llm.config.references import REFERENCE_STEPS

DOCUMENT_STEPS: dict[str, type[Any]] = {**REFERENCE_STEPS}
"""The dataclass of options of each step, by the name that it has in a recipe."""
