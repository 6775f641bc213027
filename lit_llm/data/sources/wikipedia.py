"""Articles of a dump of Wikipedia, or of another wiki that runs MediaWiki (pages-articles.xml, as a rule .bz2)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from lit_llm.data.sources.document import Skipped, SourceDocument
from lit_llm.data.sources.encoding import counted, open_file
from lit_llm.data.sources.making import BROKEN_FILE, BROKEN_RECORD, TOO_LONG, DocumentMaker
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.wikitext import plain_text

_CHUNK_BYTES = 2**20
_HEAD_BYTES = 2**16
_BEGIN, _END = b"<page>", b"</page>"
_MARKUP = 3
"""The source of a page may be so many times as long as its text may be."""
_LANGUAGE = re.compile(r'<mediawiki\b[^>]*\bxml:lang="([a-z]{2})"')
_BASE = re.compile(r"<base>\s*(https?://[^<\s]+/)[^<\s/]*\s*</base>")
_NAMESPACE = re.compile(r'<namespace key="(?:6|14)"[^>]*>([^<]+)<')
_WIKIMEDIA = re.compile(r"https?://[\w.-]*\.wik(?:ipedia|tionary|ibooks|inews|iquote|isource|iversity|ivoyage)\.org/")
_WIKIMEDIA_LICENSE = "CC-BY-SA-4.0"
"""Of the texts of Wikimedia's wikis since June 2023."""


def is_wiki_dump(path: StoredFile) -> bool:
    """Whether an XML file is a dump of MediaWiki's."""
    try:
        with open_file(path) as file:
            return b"<mediawiki" in file.read(1024)
    except (OSError, EOFError, zlib.error):
        return False


def wiki_documents(path: StoredFile, key: str, maker: DocumentMaker) -> Iterator[SourceDocument | Skipped]:
    """Yields the articles of a dump as plain text; redirects and pages of other namespaces are left out, and counted.

    A page that is no XML is skipped, and the next one read. Of several revisions, the last one counts.

    Args:
        path: The dump.
        key: Its path from the source's root.
        maker: Of the source.

    Raises:
        OSError, EOFError: The file cannot be read on.
    """
    with open_file(path) as file:
        pages = _pages(file, _MARKUP * maker.max_bytes + _HEAD_BYTES)
        head = next(pages)
        if head is None or b"<mediawiki" not in head:
            yield Skipped(key, BROKEN_FILE, "it is no dump of a wiki")
            return
        wiki = _Wiki(head.decode("utf-8", "replace"))
        for number, page in enumerate(pages, start=1):
            if page is None:
                yield Skipped(f"{key}#{number}", TOO_LONG, "the page was not read to its end")
                continue
            source, replaced = counted(lambda page=page: page.decode("utf-8", "lit_llm.replace"))
            try:
                element = ET.fromstring(source)
            except ET.ParseError as error:
                yield Skipped(f"{key}#{number}", BROKEN_RECORD, str(error))
                continue
            yield wiki.document(element, f"{key}:{element.findtext('id') or f'#{number}'}", replaced, maker)


class _Wiki:
    """What the head of a dump says of all its pages."""

    def __init__(self, head: str) -> None:
        language, base = _LANGUAGE.search(head), _BASE.search(head)
        self._language = language[1] if language else None
        self._base = base[1] if base else None
        self._license = _WIKIMEDIA_LICENSE if self._base and _WIKIMEDIA.match(self._base) else None
        self._namespaces = _NAMESPACE.findall(head)

    def document(self, page: Any, name: str, replaced: int, maker: DocumentMaker) -> SourceDocument | Skipped:
        title = page.findtext("title") or ""
        if page.findtext("ns", "0") != "0":
            return Skipped(name, "not an article", title)
        if page.find("redirect") is not None:
            return Skipped(name, "redirect", title)
        revisions = page.findall("revision")
        if not revisions or revisions[-1].find("text") is None:
            return Skipped(name, BROKEN_RECORD, "it has no text")
        revision = revisions[-1]
        if (model := revision.findtext("model", "wikitext")) != "wikitext":
            return Skipped(name, "not wikitext", model)
        return maker.make(
            name,
            plain_text(revision.findtext("text") or "", self._namespaces),
            replaced=replaced,
            url=self._base + quote(title.replace(" ", "_"), safe="/:@!$'()*,;~") if self._base and title else None,
            date=revision.findtext("timestamp"),
            license=maker.license or self._license,
            language=self._language,
            title=title or None,
            revision=revision.findtext("id"),
        )


def _pages(file: Any, limit: int) -> Iterator[bytes | None]:
    """Yields what comes before the first page, then each page; None for one of more than `limit` bytes.

    Only what is between the tags of a page is parsed as XML: a page that is broken then costs no other one. The tags
    cannot stand inside a page, in whose text `<` is written `&lt;`.
    """
    buffer, is_inside, is_long, is_head = b"", False, False, True
    while True:
        chunk = file.read(_CHUNK_BYTES)
        buffer += chunk
        while (place := buffer.find(_END if is_inside else _BEGIN)) >= 0:
            if is_inside:
                yield None if is_long or place > limit else buffer[: place + len(_END)]
                buffer = buffer[place + len(_END) :]
            else:
                if is_head:
                    yield buffer[:place]
                    is_head = False
                buffer = buffer[place:]
            is_inside, is_long = not is_inside, False
        if not chunk:
            break
        if is_inside and len(buffer) > limit:
            is_long = True
        if is_long or not (is_inside or is_head):
            buffer = buffer[-len(_END) :]
        elif is_head and len(buffer) > _HEAD_BYTES:
            yield buffer[:_HEAD_BYTES]
            is_head = False
    if is_head:
        yield buffer
    elif is_inside:
        yield None if is_long else buffer
