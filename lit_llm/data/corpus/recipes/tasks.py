"""The pieces of work that are done in parallel, each of which ends with a record in a file, and can be done again.

What these functions import is imported by every process: nothing here needs torch.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter

from lit_llm.config.recipe import SourceConfig
from lit_llm.data.cleaning.step import CorpusStep
from lit_llm.data.corpus.recipes.chain import Chain, Link, corpus_step
from lit_llm.data.corpus.recipes.parts import read_part, text_bytes
from lit_llm.data.corpus.recipes.tallies import ReadRecord, Tally, save_record
from lit_llm.data.sources.document import DocumentSource, Skipped, SourceDocument, Unit
from lit_llm.data.sources.opening import open_source


@dataclass(frozen=True)
class ReadTask:
    """Units of a source that are read by one process, and cut into parts.

    Attributes:
        number: In the order of the documents, over all sources.
        source: Where they are.
        units: At least one; they follow each other.
        record: File that says what was read.
        links: The reading, and the steps that are done in the same pass.
        part_bytes: Text after which a part ends.
    """

    number: int
    source: SourceConfig
    units: tuple[Unit, ...]
    record: Path
    links: tuple[Link, ...]
    part_bytes: int


def read_units(task: ReadTask) -> None:
    """Reads the units, and writes their documents as parts.

    Raises:
        UserError: reading cannot go on, see `DocumentSource.read`.
    """
    record = ReadRecord()
    documents = _documents(task, record)
    document = next(documents, None)
    while document is not None:
        part = f"{task.number:06d}-{len(record.parts):06d}"
        with Chain(task.links, part, has_head=True) as chain:
            while document is not None and chain.head.bytes_out < task.part_bytes:
                chain.settle(document, document.text, text_bytes(document.text), None)
                document = next(documents, None)
        record.parts.append(part)
        record.documents += chain.head.documents_out
        record.bytes += chain.head.bytes_out
    save_record(task.record, vars(record))


@lru_cache(maxsize=64)
def _opened(config: str) -> DocumentSource:
    """A source, opened once in each process, as finding its units may take a while."""
    return open_source(SourceConfig(**json.loads(config)))


def _documents(task: ReadTask, record: ReadRecord) -> Iterator[SourceDocument]:
    source = _opened(json.dumps(vars(task.source)))
    for unit in task.units:
        for found in source.read(unit):
            if isinstance(found, Skipped):
                record.skip(found)
            else:
                yield found


def forget_sources() -> None:
    """Lets go of the sources that this process has opened, which may have changed when they are read again."""
    _opened.cache_clear()


@dataclass(frozen=True)
class PartTask:
    """A part that goes through steps.

    Attributes:
        part: Its name.
        number: Its number in the order of the documents.
        input: The part before the first of these steps.
        links: The steps.
        index: Where the first of them is one that compares documents: the folder with what it has decided.
    """

    part: str
    number: int
    input: Path
    links: tuple[Link, ...]
    index: Path | None = None


def process_part(task: PartTask) -> None:
    """Puts a part through its steps."""
    with Chain(task.links, task.part, has_head=task.index is not None) as chain:
        if task.index is None:
            for document in read_part(task.input):
                chain.follow(document, text_bytes(document.text))
            return
        step = corpus_step(task.links[0])
        for document, text, size, reason in _applied(step, task, chain.head):
            chain.settle(document, text, size, reason)
        chain.head.counts.update(step.counts)


def _applied(step: CorpusStep, task: PartTask, tally: Tally) -> Iterator[tuple[SourceDocument, str, int, str | None]]:
    """Yields what a step that compares documents makes of each: the document, its text and size before, the reason."""
    came: deque[tuple[SourceDocument, str, int]] = deque()
    assert task.index is not None

    def documents() -> Iterator[SourceDocument]:
        for document in read_part(task.input):
            came.append((document, document.text, text_bytes(document.text)))
            yield document

    with _Clock(tally) as clock:
        for document, reason in step.apply(clock.pause(documents()), task.number, task.index):
            before, text, size = came.popleft()
            if before.id != document.id:
                raise AssertionError(f"{task.links[0].name} gave {document.id} for {before.id}")
            clock.stop()
            yield document, text, size, reason
            clock.start()
    if came:
        raise AssertionError(f"{task.links[0].name} has lost {came[0][0].id}")


class _Clock:
    """Adds the time that passes in a block to a tally, without that of the iterators that it is given."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __enter__(self) -> _Clock:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begins to count."""
        self._began = perf_counter()

    def stop(self) -> None:
        """Counts what has passed since `start`."""
        self._tally.seconds += perf_counter() - self._began

    def pause(self, documents: Iterable[SourceDocument]) -> Iterator[SourceDocument]:
        """Yields documents, and does not count what it takes to get them."""
        iterator = iter(documents)
        while True:
            self.stop()
            try:
                document = next(iterator, None)
            finally:
                self.start()
            if document is None:
                return
            yield document


@dataclass(frozen=True)
class IndexTask:
    """A part of which a step that compares documents writes down what it needs to know.

    Attributes:
        number: Of the part, in the order of the documents.
        input: The part before the step.
        link: The step.
        index: The step's folder.
        record: File that says that it is done.
    """

    number: int
    input: Path
    link: Link
    index: Path
    record: Path


def index_part(task: IndexTask) -> None:
    """Lets the step index the part."""
    step, tally = corpus_step(task.link), Tally()
    with _Clock(tally) as clock:
        step.index(clock.pause(read_part(task.input)), task.number, task.index)
    tally.counts.update(step.counts)
    tally.save(task.record)
