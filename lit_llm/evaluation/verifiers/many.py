"""Many answers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.progress import track
from lit_llm.config.sandbox import SandboxConfig
from lit_llm.evaluation.verifiers.programs import python_many
from lit_llm.evaluation.verifiers.verdict import Verdict, Verifier


def verify_with(
    verifiers: Mapping[str, Verifier],
    name: str,
    texts: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    sandbox: SandboxConfig | None = None,
    num_workers: int = 1,
) -> list[Verdict]:
    """The verdicts on texts, each with the row that it answers, by the verifier of a name; shows progress.

    Args:
        verifiers: All that there are.
        name: Which one.
        texts: Generated answers.
        rows: The row of the task for each.
        sandbox: How programs are kept apart.
        num_workers: Programs at a time.

    Raises:
        UserError: there is no such verifier, or a row lacks what it needs.
    """
    if name not in verifiers:
        raise UserError(f"there is no verifier {name}; there are {', '.join(sorted(verifiers))}")
    if name == "python":
        return python_many(texts, rows, sandbox or SandboxConfig(), num_workers)
    pairs = list(zip(texts, rows, strict=True))
    return [verifiers[name](text, row) for text, row in track(pairs, f"verifying by {name}", unit="answers")]
