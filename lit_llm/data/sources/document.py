"""A document with all that its source says of it, and the protocol of sources that give such documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class SourceDocument:
    """A document on its way from a source to a corpus. Steps of a recipe change it in place.

    Attributes:
        id: Names the document within its source: the path from the source's root, a row as `path:row`, a record of an
            archive as `path@byte`. No two documents of a source have the same one.
        source: Name of the source in the recipe.
        text: Valid Unicode. Of a web page, its HTML until the step `extract` has run.
        digest: XXH3-128 of the text as the source had it, as 32 hexadecimal digits.
        url: Address, where one is known.
        date: Date or time in ISO 8601, where one is known.
        license: What the source says of the licence, where it does.
        language: ISO 639-1 code, where one is known.
        metadata: Whatever else is known, such as a title, a path or the scores that steps have given; fit for JSON.
    """

    id: str
    source: str
    text: str
    digest: str
    url: str | None = None
    date: str | None = None
    license: str | None = None
    language: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """Something in a source that could not be read as a document, and was left out.

    Attributes:
        where: The file, and the row or record in it.
        reason: Why, in a few words that are the same for all of a kind ("broken record", "no field 'text'").
        detail: What exactly was wrong with this one.
    """

    where: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Span:
    """A part of a large file that can be read on its own: what begins from one place on and before another.

    Attributes:
        begin: A byte, or the number of a row group.
        end: Likewise, the first that is not in it; None: the end of the file.
        rows_before: Rows (or lines) that begin before it.
    """

    begin: int
    end: int | None
    rows_before: int = 0


@dataclass(frozen=True)
class Unit:
    """A part of a source that can be read on its own, mostly a file.

    Attributes:
        name: Names the unit within its source, for a part of a file together with its span.
        size_bytes: Its size as it is stored; None where that is not known.
        modified: What changes when its content does, as the time of a file or the tag of an object; None where that is
            not known.
        span: The part of the file; None: all of it.
    """

    name: str
    size_bytes: int | None = None
    modified: str | None = None
    span: Span | None = None


class DocumentSource(Protocol):
    """Documents in units, which different processes may read at the same time, each as often as it wants to.

    A source is made again in each process from its configuration, so that nothing of it needs to be pickled.

    Attributes:
        description: The source in words.
    """

    description: str

    def units(self) -> list[Unit]:
        """The units in their order, which is that of the documents.

        Raises:
            UserError: the source does not exist, or is empty.
        """

    def read(self, unit: Unit) -> Iterator[SourceDocument | Skipped]:
        """Yields the documents of a unit in order, each once, in flat memory; what cannot be read comes as `Skipped`.

        Raises:
            UserError: reading cannot go on, as what is wrong is likely to hold for other units, too.
        """
