"""What a step of a recipe is: one that looks at a document at a time, or one that has to see the whole corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from lit_llm.data.sources.document import SourceDocument

Item = TypeVar("Item")
ParallelMap = Callable[[Callable[[Item], None], Sequence[Item]], None]
"""Calls a function that can be pickled for each item, on all workers, and returns when all are done."""


@runtime_checkable
class DocumentStep(Protocol):
    """A step that needs nothing but the document. It is made in each process from its options.

    Attributes:
        counts: What it has done besides dropping documents, as {"e-mail addresses masked": 12}; sums over the corpus.
    """

    counts: Counter[str]

    def __call__(self, document: SourceDocument) -> str | None:
        """Changes the document in place where the step edits.

        The result depends on the document and the options alone, whatever was seen before.

        Returns:
            Why the document is dropped, in words that are the same for all of a kind; None to keep it.
        """


@runtime_checkable
class CorpusStep(Protocol):
    """A step that compares documents: every part is indexed, then one decision is made, then every part is gone over.

    Parts are numbered from 0 in the order of the documents. Whatever is kept between the three goes into `folder`,
    which belongs to this step alone; a call that was interrupted is made again, so that each must replace what it finds
    there.
    """

    counts: Counter[str]

    def index(self, documents: Iterable[SourceDocument], part: int, folder: Path) -> None:
        """Writes what the decision needs to know of a part. Parts are indexed at the same time by several processes."""

    def decide(self, parts: int, folder: Path, memory_bytes: int, parallel: ParallelMap[Any]) -> dict[str, Any]:
        """Decides what becomes of the documents of all parts, and writes it into `folder`.

        The decision is the same whatever `memory_bytes` and the number of workers are.

        Args:
            parts: How many there are.
            folder: Has the index of each part.
            memory_bytes: What each worker may hold in memory at once; what needs more goes through files in `folder`.
            parallel: Runs a function over items on all workers.

        Returns:
            Facts for the report, fit for JSON: {"clusters": ..., "cluster sizes": {"2": 17, ...}, ...}.
        """

    def apply(
        self, documents: Iterable[SourceDocument], part: int, folder: Path
    ) -> Iterator[tuple[SourceDocument, str | None]]:
        """Yields every document of a part in order, changed where the step edits, and why it is dropped, if it is."""
