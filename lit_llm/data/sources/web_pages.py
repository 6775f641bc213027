"""Web pages: how the bytes of HTML are read as text, and HTML files as documents."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_llm.config.extras import optional_module
from lit_llm.data.sources.document import Skipped, SourceDocument
from lit_llm.data.sources.encoding import counted, marked_encoding, open_file
from lit_llm.data.sources.making import BINARY, TOO_LONG, DocumentMaker
from lit_llm.data.sources.remote import StoredFile

HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
MEDIA_TYPE = "media_type"
"""The name in a document's metadata of what its text is written in; absent where that is plain text."""
HTML = "text/html"

_HEAD_BYTES = 4096
_DECLARED = re.compile(
    rb"<meta\b[^>]{0,400}?\bcharset\s*=\s*[\"']?\s*([\w:.-]+)|^\s*<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']([\w:.-]+)",
    re.IGNORECASE,
)
_STARTS_AS_HTML = re.compile(
    r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*){0,9}<(!doctype\s+html|html|head|body)\b", re.I | re.S
)
_PROBED = 2000


def decode_html(data: bytes, charset: str | None = None) -> tuple[str, int, str] | None:
    """Decodes a page in the order of the HTML standard (section 13.2.3.2): by its byte order mark, else by what the
    server said, else by what the page says, else by what its bytes look like, of which UTF-8 comes first.

    Where a page is not in the encoding that is named, and is valid UTF-8, it is read as that.

    Args:
        data: All of the page.
        charset: What the server said.

    Returns:
        The text, how many bytes of it became U+FFFD, and the name of the encoding; None where it is no text.

    Raises:
        UserError: resiliparse is not installed.
    """
    marked = marked_encoding(data)
    if marked is None and b"\0" in data[:_HEAD_BYTES] and not _names_utf_16(charset):
        return None
    if marked is not None:
        return *_decode(data, marked), "utf-8" if marked == "utf-8-sig" else marked
    declared = _known_encoding(charset) or _known_encoding(_declared_charset(data))
    if declared in (None, "utf-8") or _fails(data, declared):
        if not _fails(data, "utf-8"):
            return data.decode(), 0, "utf-8"
        detector = optional_module("resiliparse.parse.encoding", "reading HTML", "data")
        declared = declared or detector.detect_encoding(data) or "utf-8"
    return *_decode(data, declared), declared


def _names_utf_16(charset: str | None) -> bool:
    return charset is not None and charset.lower().startswith("utf-16")


def _decode(data: bytes, encoding: str) -> tuple[str, int]:
    return counted(lambda: data.decode(encoding, "lit_llm.replace"))


def _fails(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return True
    return False


def _declared_charset(data: bytes) -> str | None:
    """What the page says itself; that it is UTF-16 is a mistake, as it could not be read so far."""
    found = _DECLARED.search(data[:_HEAD_BYTES])
    name = (found[1] or found[2]).decode("ascii", "replace") if found else None
    return "utf-8" if _names_utf_16(name) else name


def _known_encoding(label: str | None) -> str | None:
    """Python's name of the encoding that browsers take for a label; None where they know none."""
    if not label:
        return None
    encodings = optional_module("resiliparse.parse.encoding", "reading HTML", "data")
    found = encodings.map_encoding_to_html5(label.strip(" \"'").lower(), fallback_utf8=False)
    return None if found is None else str(found)


def is_html(document: SourceDocument) -> bool:
    """Whether the text of a document is HTML: its source says so, or it begins like a page."""
    kind = document.metadata.get(MEDIA_TYPE)
    return kind == HTML if kind else starts_as_html(document.text)


def starts_as_html(text: str) -> bool:
    """Whether a text begins as a whole page of HTML does."""
    return _STARTS_AS_HTML.match(text[:_PROBED]) is not None


def html_documents(path: StoredFile, key: str, maker: DocumentMaker) -> Iterator[SourceDocument | Skipped]:
    """Yields the page that an HTML file holds.

    Raises:
        UserError: resiliparse is not installed.
        OSError, EOFError, zlib.error: The file cannot be read on.
    """
    with open_file(path) as file:
        data = file.read(maker.max_bytes + 1)
        # Where the file is broken, this raises: half a page is none.
        data += file.read(maker.max_bytes + 1 - len(data))
    if len(data) > maker.max_bytes:
        yield Skipped(key, TOO_LONG, f"more than {maker.max_bytes:,} bytes")
        return
    decoded = decode_html(data)
    if decoded is None:
        yield Skipped(key, BINARY, "there are NUL bytes, and no byte order mark")
        return
    text, replaced, encoding = decoded
    yield maker.make(key, text, replaced=replaced, **html_facts(encoding))


def html_facts(encoding: str) -> dict[str, str | None]:
    """Metadata of a page that was decoded."""
    return {MEDIA_TYPE: HTML, "encoding": None if encoding in ("utf-8", "ascii") else encoding}
