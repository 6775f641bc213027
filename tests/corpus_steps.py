"""Steps that compare documents, run as a recipe runs them but in this process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_llm.data.cleaning.step import CorpusStep
from lit_llm.data.sources.document import SourceDocument


def documents(*texts: str) -> list[SourceDocument]:
    """Documents with the texts, named 0, 1, ..."""
    return [SourceDocument(str(number), "source", text, "0" * 32) for number, text in enumerate(texts)]


def in_parts(items: Sequence[SourceDocument], size: int) -> list[list[SourceDocument]]:
    """The documents in parts of `size`; the second part has none."""
    parts = [list(items[start : start + size]) for start in range(0, len(items), size)]
    return [*parts[:1], [], *parts[1:]]


def serial(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Calls a function, as it comes out of a pickle, for all items, the last one first."""
    for item in reversed(items):
        pickle.loads(pickle.dumps(function))(item)


def run_step(
    step: CorpusStep, parts: list[list[SourceDocument]], folder: Path, memory_bytes: int = 2**30
) -> tuple[list[tuple[str, str, str | None]], dict[str, Any]]:
    """Each document's id, text and why it is dropped, and the facts of the decision. The documents stay as they are."""
    folder.mkdir(exist_ok=True)
    for number in reversed(range(len(parts))):
        step.index(map(copy.deepcopy, parts[number]), number, folder)
    facts = step.decide(len(parts), folder, memory_bytes, serial)
    results = [
        (document.id, document.text, reason)
        for number, part in enumerate(parts)
        for document, reason in step.apply(map(copy.deepcopy, part), number, folder)
    ]
    return results, facts


def dropped(results: list[tuple[str, str, str | None]]) -> list[int]:
    """Numbers of the documents that were dropped."""
    return [int(name) for name, _, reason in results if reason is not None]
