"""The way of a part's documents through steps that follow each other, in one pass; each step's result can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from lit_llm.config import UserError
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.step import CorpusStep, DocumentStep
from lit_llm.data.corpus.recipes.parts import PartWriter, text_bytes
from lit_llm.data.corpus.recipes.tallies import Tally
from lit_llm.data.sources.document import SourceDocument

NOTHING_LEFT = "nothing left"
"""Why a document is dropped of which a step has left white space alone."""


@dataclass(frozen=True)
class Link:
    """A step in its place in a recipe, and where its results are.

    Attributes:
        number: 0 is the reading of the sources, the first step is 1.
        name: Of the step.
        options: Of the step; None for number 0.
        digest: Of all that the result depends on.
        folder: Has a tally for each part, and the parts themselves where they are kept.
        written: Whether the parts are written.
    """

    number: int
    name: str
    options: Any
    digest: str
    folder: Path
    written: bool = True

    def part(self, name: str) -> Path:
        """The documents of a part after this step."""
        return self.folder / f"part-{name}.parquet"

    def tally(self, name: str) -> Path:
        """What became of the documents of a part at this step."""
        return self.folder / f"part-{name}.json"


_made: dict[str, DocumentStep] = {}
"""Document steps that this process has made, by the digest of their link; some take seconds to make."""


def document_step(link: Link) -> DocumentStep:
    """The step of a link, made once in each process."""
    if link.digest not in _made:
        step = build_step(link.name, link.options)
        assert isinstance(step, DocumentStep)
        _made[link.digest] = step
    _made[link.digest].counts.clear()
    return _made[link.digest]


def corpus_step(link: Link) -> CorpusStep:
    """The step of a link, made afresh."""
    step = build_step(link.name, link.options)
    assert isinstance(step, CorpusStep)
    return step


def check_steps(links: Sequence[Link]) -> None:
    """Makes each step once, so that what is wrong with its options shows before anything is read.

    Raises:
        UserError: an option names a file that is missing, or a library is not installed.
    """
    for link in links:
        try:
            build_step(link.name, link.options)
        except UserError as error:
            raise UserError(f"step {link.number} of the recipe, {link.name}: {error}") from None


def forget_steps() -> None:
    """Lets go of the steps that this process has made, with the models and lists that they hold."""
    _made.clear()


class _Open:
    """A link while a part goes through it."""

    def __init__(self, link: Link, step: DocumentStep | None, writer: PartWriter | None) -> None:
        self.link, self.step, self.writer, self.tally = link, step, writer, Tally()

    def take(self, document: SourceDocument, size: int) -> int | None:
        """Puts a document through the step; returns its size then, or None if it is dropped."""
        text, began = document.text, perf_counter()
        try:
            reason = self.step(document)  # type: ignore[misc]
        except Exception as error:
            error.add_note(f"in step {self.link.number}, {self.link.name}, at {document.id} of {document.source}")
            raise
        self.tally.seconds += perf_counter() - began
        return self.settle(document, text, size, reason)

    def settle(self, document: SourceDocument, text: str, size: int, reason: str | None) -> int | None:
        """Counts what became of a document that came with `text` of `size` bytes, as `take` does."""
        size_out = size
        if document.text is not text and reason is None:
            size_out = text_bytes(document.text)
            if not document.text or document.text.isspace():
                reason = NOTHING_LEFT
        if reason is not None:
            self.tally.drop(document, text, size, reason)
            return None
        self.tally.keep(size, size_out)
        if self.writer is not None:
            self.writer.add(document, size_out)
        return size_out


class Chain:
    """The links that a part goes through in one pass. What is written is there once the block has ended.

    Args:
        links: In their order.
        part: Name of the part.
        has_head: Whether what becomes of a document at the first link is told, and not found out by a document step.
    """

    def __init__(self, links: tuple[Link, ...], part: str, has_head: bool) -> None:
        self._links, self._part, self._has_head = links, part, has_head
        self._stack = ExitStack()
        self._open: list[_Open] = []

    def __enter__(self) -> Chain:
        with ExitStack() as stack:
            for number, link in enumerate(self._links):
                step = None if self._has_head and number == 0 else document_step(link)
                writer = stack.enter_context(PartWriter(link.part(self._part))) if link.written else None
                self._open.append(_Open(link, step, writer))
            self._stack = stack.pop_all()
        return self

    @property
    def head(self) -> Tally:
        """The tally of the first link so far."""
        return self._open[0].tally

    def follow(self, document: SourceDocument, size: int) -> None:
        """Puts a document of `size` bytes of text through every step."""
        self._follow(self._open, document, size)

    def settle(self, document: SourceDocument, text: str, size: int, reason: str | None) -> None:
        """Tells what became of a document at the first link, and puts it through the others if it was kept."""
        size_out = self._open[0].settle(document, text, size, reason)
        if size_out is not None:
            self._follow(self._open[1:], document, size_out)

    @staticmethod
    def _follow(links: list[_Open], document: SourceDocument, size: int | None) -> None:
        for link in links:
            size = link.take(document, size)  # type: ignore[arg-type]
            if size is None:
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            for each in self._open:
                if each.step is not None:
                    each.tally.counts.update(each.step.counts)
                each.tally.save(each.link.tally(self._part))
