"""Every step of a recipe by its name. What a step needs is imported only when it is made."""

from __future__ import annotations

import importlib
from typing import Any

from lit_llm.data.cleaning.step import CorpusStep, DocumentStep

# Each class is made from its options, the dataclass of that name in `lit_llm.config.cleaning` or `.duplicates`.
_DOCUMENT_STEPS: dict[str, str] = {
    "unicode": "lit_llm.data.cleaning.unicode:Unicode",
    "language": "lit_llm.data.cleaning.language:Language",
    "gopher_quality": "lit_llm.data.cleaning.gopher:GopherQuality",
    "gopher_repetition": "lit_llm.data.cleaning.gopher:GopherRepetition",
    "c4_quality": "lit_llm.data.cleaning.web_pages:C4Quality",
    "fineweb_quality": "lit_llm.data.cleaning.web_pages:FineWebQuality",
    "quality_classifier": "lit_llm.data.cleaning.quality_classifier:QualityClassifier",
    "decontaminate": "lit_llm.data.cleaning.decontamination:Decontaminate",
    "code_quality": "lit_llm.data.cleaning.source_code:CodeQuality",
    "url_blocklist": "lit_llm.data.cleaning.addresses:UrlBlocklist",
    "toxicity": "lit_llm.data.cleaning.toxicity:Toxicity",
    "extract": "lit_llm.data.cleaning.extraction:Extraction",
    "pii": "lit_llm.data.cleaning.personal_data:Pii",
}
_CORPUS_STEPS: dict[str, str] = {
    "exact_documents": "lit_llm.data.cleaning.duplicates.exact_documents:ExactDocuments",
    "exact_lines": "lit_llm.data.cleaning.duplicates.exact_lines:ExactLines",
    "near_duplicates": "lit_llm.data.cleaning.duplicates.near_duplicates:NearDuplicates",
    "substrings": "lit_llm.data.cleaning.substrings:RepeatedSubstrings",
}


def is_corpus_step(name: str) -> bool:
    """Whether the step has to see the whole corpus."""
    return name in _CORPUS_STEPS


def build_step(name: str, options: Any) -> DocumentStep | CorpusStep:
    """The step `name`, made from its options."""
    module, _, attribute = {**_DOCUMENT_STEPS, **_CORPUS_STEPS}[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(options)
