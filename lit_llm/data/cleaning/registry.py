"""Every step of a recipe by its name. What a step needs is imported only when it is made."""

from __future__ import annotations

import importlib
from typing import Any

from lit_llm.data.cleaning.step import CorpusStep, DocumentStep

# Each class is made from its options, the dataclass of that name in `lit_llm.config.cleaning` or `.duplicates`.
_DOCUMENT_STEPS: dict[str, str] = {
    "extract": "lit_llm.data.cleaning.extraction:Extraction",
}
_CORPUS_STEPS: dict[str, str] = {}


def is_corpus_step(name: str) -> bool:
    """Whether the step has to see the whole corpus."""
    return name in _CORPUS_STEPS


def build_step(name: str, options: Any) -> DocumentStep | CorpusStep:
    """The step `name`, made from its options."""
    module, _, attribute = {**_DOCUMENT_STEPS, **_CORPUS_STEPS}[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(options)
