"""Options of the steps that look at one document at a time."""

from __future__ import annotations

from typing import Any

from lit_llm.config.extraction import ExtractConfig
from lit_llm.config.quality_rules import (
    C4QualityConfig,
    CodeQualityConfig,
    FineWebQualityConfig,
    GopherQualityConfig,
    GopherRepetitionConfig,
)
from lit_llm.config.references import REFERENCE_STEPS
from lit_llm.config.text_filters import (
    LanguageConfig,
    PiiConfig,
    ToxicityConfig,
    UnicodeConfig,
    UrlBlocklistConfig,
)

DOCUMENT_STEPS: dict[str, type[Any]] = {
    "unicode": UnicodeConfig,
    "language": LanguageConfig,
    "gopher_quality": GopherQualityConfig,
    "gopher_repetition": GopherRepetitionConfig,
    "c4_quality": C4QualityConfig,
    "fineweb_quality": FineWebQualityConfig,
    **REFERENCE_STEPS,
    "code_quality": CodeQualityConfig,
    "url_blocklist": UrlBlocklistConfig,
    "toxicity": ToxicityConfig,
    "extract": ExtractConfig,
    "pii": PiiConfig,
}
"""The dataclass of options of each step, by the name that it has in a recipe."""
