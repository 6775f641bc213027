"""Options of the steps that compare documents with each other, or with evaluations."""

from __future__ import annotations

from typing import Any

from lit_llm.config.substrings import SubstringsOptions

CORPUS_STEPS: dict[str, type[Any]] = {"substrings": SubstringsOptions}
"""The dataclass of options of each step, by the name that it has in a recipe."""
