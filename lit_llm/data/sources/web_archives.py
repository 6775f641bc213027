"""Documents of web archives: the pages of WARC files, and the texts of Common Crawl's WET files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_llm.config.extras import optional_module
from lit_llm.data.sources.document import Skipped, SourceDocument, Span
from lit_llm.data.sources.http_responses import HttpResponse, parse_response
from lit_llm.data.sources.making import BINARY, BROKEN_RECORD, TOO_LONG, DocumentMaker
from lit_llm.data.sources.record_search import next_record
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.web_pages import HTML, decode_html, html_facts, starts_as_html

_HEADER_BYTES = 2**16
_HTML_TYPES = frozenset({HTML, "application/xhtml+xml"})
_PLAIN_TYPES = frozenset({"text/plain", "text/markdown"})


@dataclass(frozen=True)
class _Record:
    """A record of an archive, with the block of bytes that follows its header; None where that is too long."""

    offset: int
    headers: dict[str, str]
    block: bytes | None
    length: int

    @property
    def url(self) -> str | None:
        """Some writers put the address between angle brackets, as the first edition of WARC/1.0 had it."""
        return self.headers.get("warc-target-uri", "").strip("<> ") or None


@dataclass(frozen=True)
class _Damage:
    """A place from which on an archive cannot be read, up to where the next record is found."""

    offset: int
    reason: str


def archive_documents(
    path: StoredFile, key: str, maker: DocumentMaker, texts: bool, span: Span | None = None
) -> Iterator[SourceDocument | Skipped]:
    """Yields the documents of an archive, one for each response (or resource) that is HTML or plain text.

    Their ids are made of the file and the byte where the record begins, as copies of an archive, and some crawlers,
    repeat the ids that records have; those are in the metadata.

    The file may be compressed with gzip or zstandard. What follows a broken record is read where each record is
    compressed by itself, as is usual, or none is.

    Args:
        path: The file.
        key: Its path from the source's root.
        maker: Of the source.
        texts: Read the records of a WET file, which are extracted texts, and not the pages.
        span: Bytes of the file; a record that begins in them is read to its end.

    Raises:
        UserError: fastwarc or resiliparse is not installed.
        OSError: The file cannot be read on.
    """
    bounds = _bounds(path, span)
    if bounds is None:
        return
    offset, further = -1, 0
    for record in _records(path, bounds, maker.max_bytes + _HEADER_BYTES, texts):
        if isinstance(record, _Damage):
            yield Skipped(f"{key}@{record.offset}", BROKEN_RECORD, record.reason)
            continue
        # Where several records are compressed as one, fastwarc does not know where each begins.
        is_further = record.offset == offset or (bounds[1] is not None and record.offset >= bounds[1])
        offset, further = (offset, further + 1) if is_further else (record.offset, 0)
        name = f"{key}@{offset}#{further}" if further else f"{key}@{offset}"
        if record.block is None:
            yield Skipped(name, TOO_LONG, f"{record.length:,} bytes")
        elif trouble := _trouble(record):
            yield Skipped(name, BROKEN_RECORD, trouble)
        else:
            yield _text(name, record, maker) if texts else _page(name, record, maker)


def _bounds(path: StoredFile, span: Span | None) -> tuple[int, int | None] | None:
    """Where the first record of a span begins, and the first one after it; None where no record begins in it."""
    if span is None:
        return 0, None
    begin = 0 if span.begin == 0 else next_record(path, span.begin - 1, span.end)
    if begin is None:
        return None
    return begin, None if span.end is None else next_record(path, span.end - 1)


def _text(name: str, record: _Record, maker: DocumentMaker) -> SourceDocument | Skipped:
    assert record.block is not None
    decoded = decode_html(record.block, "utf-8")
    if decoded is None:
        return Skipped(name, BINARY, "there are NUL bytes")
    return maker.make(name, decoded[0], replaced=decoded[1], url=record.url, **_dated(record))


def _page(name: str, record: _Record, maker: DocumentMaker) -> SourceDocument | Skipped:
    assert record.block is not None
    if record.headers.get("warc-type", "").lower() == "resource":
        response = HttpResponse(200, record.headers.get("content-type", ""), record.block)
    else:
        found = parse_response(record.block, maker.max_bytes)
        if found is None:
            return Skipped(name, BROKEN_RECORD, "it is no HTTP response")
        response = found
    if response.status != 200:
        return Skipped(name, "HTTP status other than 200", str(response.status))
    if len(response.body) > maker.max_bytes:
        return Skipped(name, TOO_LONG, f"more than {maker.max_bytes:,} bytes")
    media_type = record.headers.get("warc-identified-payload-type", "").lower() or response.media_type
    if media_type and media_type not in _HTML_TYPES | _PLAIN_TYPES:
        return Skipped(name, "neither HTML nor plain text", media_type)
    decoded = decode_html(response.body, response.charset)
    if decoded is None:
        return Skipped(name, BINARY, "there are NUL bytes, and no byte order mark")
    text, replaced, encoding = decoded
    facts = html_facts(encoding) if media_type in _HTML_TYPES or (not media_type and starts_as_html(text)) else {}
    if not media_type and not facts:
        return Skipped(name, "neither HTML nor plain text", "it does not say what it is")
    return maker.make(name, text, replaced=replaced, url=record.url, **_dated(record), **facts)


def _dated(record: _Record) -> dict[str, str | None]:
    """What a record's header says besides of its document."""
    return {
        "date": record.headers.get("warc-date"),
        "truncated": record.headers.get("warc-truncated"),
        "content_languages": record.headers.get("warc-identified-content-language"),
        "record_id": record.headers.get("warc-record-id", "").strip("<> ") or None,
    }


def _trouble(record: _Record) -> str | None:
    """What is wrong with a record's block: it ends too early, or is not the one that the header has the digest of."""
    assert record.block is not None
    if len(record.block) < record.length:
        return f"{len(record.block):,} of {record.length:,} bytes are there"
    algorithm, _, stated = record.headers.get("warc-block-digest", "").partition(":")
    # Only SHA-1 in base 32 is written in one way by all.
    if algorithm.lower() == "sha1" and len(stated) == 32:
        found = base64.b32encode(hashlib.sha1(record.block, usedforsecurity=False).digest()).decode()
        if found != stated.upper():
            return "its digest is another one than the header says"
    return None


def _records(path: StoredFile, bounds: tuple[int, int | None], limit: int, texts: bool) -> Iterator[_Record | _Damage]:
    """Yields the records of the types that are asked for, and each place where the file is broken."""
    warc = optional_module("fastwarc.warc", "reading web archives", "data")
    kinds = warc.WarcRecordType
    wanted = kinds.conversion if texts else kinds.response | kinds.resource
    begin: int | None = bounds[0]
    damage: _Damage | None = None
    while begin is not None:
        offset, is_whole = begin, False
        with path.open("rb") as file:
            file.seek(begin)
            try:
                # All types are gone through, as only then it is known how far reading has come.
                for record in warc.ArchiveIterator(_Bounded(file, bounds[1]), parse_http=False):
                    offset, is_whole = record.stream_pos, False
                    if damage is not None:
                        yield damage
                        damage = None
                    if record.record_type & wanted:
                        yield _read(record, limit)
                    elif record.record_type in (kinds.unknown, kinds.no_type):
                        yield _Damage(offset, f"at byte {offset:,}: it is of no type that there is")
                    is_whole = True
                begin = None
            except OSError as error:
                if error.errno is not None:  # the file cannot be read, whatever is in it
                    raise
                if is_whole:
                    # What follows is broken: the next record, which is then found to be, or something between the two.
                    damage = _Damage(offset, f"after the record at byte {offset:,}: {error}")
                else:
                    damage = None
                    yield _Damage(offset, f"at byte {offset:,}: {error}")
                begin = next_record(path, offset, bounds[1])
    if damage is not None:
        yield damage


class _Bounded:
    """A file that seems to end at a byte, where one is given."""

    def __init__(self, file: Any, end: int | None) -> None:
        self._file, self._end = file, end
        self.tell, self.close = file.tell, file.close

    def read(self, size: int) -> bytes:
        """As of a file; fastwarc always says how much."""
        room = size if self._end is None else min(size, self._end - self._file.tell())
        return bytes(self._file.read(room)) if room > 0 else b""


def _read(record: Any, limit: int) -> _Record:
    length = record.content_length
    headers = {name.lower(): value for name, value in record.headers.items()}
    block = record.reader.read() if length <= limit else None
    return _Record(record.stream_pos, headers, block, length)
