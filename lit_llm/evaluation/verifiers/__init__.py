"""What decides that a generated answer is right."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
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
from lit_llm.evaluation.verifiers.instructions import follow, instruction_accuracies, instructions
from lit_llm.evaluation.verifiers.many import verify_with
from lit_llm.evaluation.verifiers.programs import python
from lit_llm.evaluation.verifiers.reasoning import reasoning_gym, reasoning_rows
from lit_llm.evaluation.verifiers.samples import majority, pass_at_k
from lit_llm.evaluation.verifiers.verdict import Verdict, Verifier

VERIFIERS: dict[str, Verifier] = {
    "number": number,
    "exact": exact,
    "choice": choice,
    "contains": contains,
    "regex": matches,
    "python": python,
    "instructions": instructions,
    "reasoning_gym": reasoning_gym,
}
"""By the name that a task gives. Each raises UserError where the row lacks what it needs."""
verify = partial(verify_with, VERIFIERS)
"""The verdicts on many texts at once, see `verify_with`; `python` runs `num_workers` programs at a time."""

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
    "follow",
    "instruction_accuracies",
    "majority",
    "pass_at_k",
    "reasoning_rows",
    "right_choice",
    "verify",
]
