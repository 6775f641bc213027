"""What decides that a generated answer is right."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from lit_llm.evaluation.verifiers.answers import (
    choice,
    contains,
    exact,
    extract_choice,
    extract_match,
    extract_number,
    matches,
    number,
    plain_text,
    right_choice,
)
from lit_llm.evaluation.verifiers.samples import majority, pass_at_k
from lit_llm.evaluation.verifiers.verdict import Verdict, Verifier

VERIFIERS: dict[str, Verifier] = {
    "number": number,
    "exact": exact,
    "choice": choice,
    "contains": contains,
    "regex": matches,
}
"""By the name that a task gives. Each raises UserError where the row lacks what it needs."""

ANSWERS: dict[str, Callable[[str, Mapping[str, Any]], Hashable | None]] = {
    "number": lambda text, row: extract_number(text),
    "exact": plain_text,
    "choice": lambda text, row: extract_choice(text, row["choices"]),
    "regex": extract_match,
}
"""What a text has a vote for in `majority`, None where it has none: equal for texts that say the same."""

__all__ = [
    "ANSWERS",
    "VERIFIERS",
    "Verdict",
    "Verifier",
    "extract_choice",
    "extract_match",
    "extract_number",
    "majority",
    "pass_at_k",
    "right_choice",
]
