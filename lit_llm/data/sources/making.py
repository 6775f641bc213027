"""Documents made from what a source has: checked, digested, with their provenance."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any

from lit_llm.config.extras import optional_module
from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import Skipped, SourceDocument
from lit_llm.data.sources.source import without_surrogates

TOO_LONG = "longer than max_document_bytes"
NO_TEXT = "no text"
BINARY = "not text"
BROKEN_FILE = "broken file"
UNREADABLE_FILE = "file that cannot be read"
LOST_FILES = frozenset({BROKEN_FILE, UNREADABLE_FILE})
"""Why a file, or what is left of it, is not read."""
BROKEN_ROW = "broken row"
BROKEN_RECORD = "broken record"

_COARSE_DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2]))?")


@dataclass(frozen=True)
class DocumentMaker:
    """What the documents of one source have in common.

    Attributes:
        source: Name of the source.
        license: Licence of a document whose own source says none.
        max_bytes: The longest text that is let through.
    """

    source: str
    license: str | None
    max_bytes: int

    @classmethod
    def of(cls, config: SourceConfig) -> DocumentMaker:
        """As a source's configuration says."""
        return cls(config.name or config.path, config.license, config.max_document_bytes)

    def make(
        self,
        document_id: str,
        text: str,
        *,
        replaced: int = 0,
        url: str | None = None,
        date: str | None = None,
        license: str | None = None,
        language: str | None = None,
        **metadata: Any,
    ) -> SourceDocument | Skipped:
        """The document, or why it is none: it has no text, or is too long.

        Args:
            document_id: Its id in the source.
            text: As it was read.
            replaced: How many bytes of it were not valid in its encoding, and became U+FFFD.
            url: Its address.
            date: In ISO 8601.
            license: What is said of it in particular.
            language: ISO 639-1 code.
            metadata: Whatever else is known; None is left out.
        """
        if not text.strip():
            return Skipped(document_id, NO_TEXT)
        text, halves = without_surrogates(text)
        encoded = text.encode()
        if len(encoded) > self.max_bytes:
            return Skipped(document_id, TOO_LONG, f"{len(encoded):,} bytes")
        kept = {name: value for name, value in metadata.items() if value is not None}
        if replaced + halves:
            kept["replaced_bytes"] = replaced + halves
        return SourceDocument(
            document_id,
            self.source,
            text,
            text_digest(encoded),
            url,
            date,
            license or self.license,
            language,
            kept,
        )


class UniqueIds:
    """Makes the ids that a unit itself gives to its documents unique: one that was there before gets a number.

    Of each, 8 bytes are kept, which take about 60 in memory.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def take(self, name: str, number: int) -> str:
        """The name; where a document before has had it, followed by `#` and the document's number in its unit."""
        digest = optional_module("xxhash", "reading documents", "data").xxh3_64_intdigest(name.encode())
        if digest in self._seen:
            return f"{name}#{number}"
        self._seen.add(digest)
        return name


def text_digest(encoded: bytes) -> str:
    """XXH3-128 of a text in UTF-8, as 32 hexadecimal digits.

    Raises:
        UserError: xxhash is not installed.
    """
    return str(optional_module("xxhash", "reading documents", "data").xxh3_128_hexdigest(encoded))


def iso_date(value: Any) -> str | None:
    """A date or time in ISO 8601, from text that has one, or from a value of that type; None where there is none."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if not isinstance(value, str):
        return None
    text = value.strip()
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return text if _COARSE_DATE.fullmatch(text) else None
    return text
