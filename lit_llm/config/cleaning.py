"""Options of the steps that look at one document at a time."""

from __future__ import annotations

from typing import Any

from lit_llm.config.quality_rules import (
    C4QualityConfig,
    FineWebQualityConfig,
    GopherQualityConfig,
    GopherRepetitionConfig,
)

DOCUMENT_STEPS: dict[str, type[Any]] = {
    "gopher_quality": GopherQualityConfig,
    "gopher_repetition": GopherRepetitionConfig,
    "c4_quality": C4QualityConfig,
    "fineweb_quality": FineWebQualityConfig,
}
"""The dataclass of options of each step, by the name that it has in a recipe."""
