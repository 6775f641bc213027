"""HTTP responses as web archives keep them."""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from email.message import Message

from lit_llm.config.extras import optional_module

_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_ANY_ZLIB = zlib.MAX_WBITS | 32


@dataclass(frozen=True)
class HttpResponse:
    """A response.

    Attributes:
        status: Its code.
        content_type: The header of that name.
        body: As it was before it was packed for the transfer.
    """

    status: int
    content_type: str
    body: bytes

    @property
    def media_type(self) -> str:
        """As "text/html"; empty where the header says nothing."""
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        """The encoding that the server names."""
        message = Message()
        message["Content-Type"] = self.content_type
        found = message.get_param("charset")
        return found if isinstance(found, str) else None


def parse_response(block: bytes, limit: int) -> HttpResponse | None:
    """The response in a record's block; None where there is none.

    A body that is not packed as the headers say is taken as it is, as crawlers unpack bodies and keep the headers.

    Args:
        block: Status line, headers and body.
        limit: Of a packed body, not much more than so many bytes are unpacked.
    """
    status = _STATUS.match(block)
    end = _END_OF_HEADERS.search(block)
    if status is None or end is None:
        return None
    headers: dict[str, str] = {}
    for line in block[: end.start()].decode("latin-1").splitlines()[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = block[end.end() :]
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _join_chunks(body)
    for coding in reversed(headers.get("content-encoding", "").lower().split(",")):
        body = _unpack(body, coding.strip(), limit)
    return HttpResponse(int(status[1]), headers.get("content-type", ""), body)


def _join_chunks(body: bytes) -> bytes:
    """The body that was sent in chunks (RFC 9112, section 7.1), up to where it breaks off."""
    parts, position = [], 0
    while chunk := _CHUNK.match(body, position):
        length = int(chunk[1], 16)
        if length == 0:
            return b"".join(parts)
        parts.append(body[chunk.end() : chunk.end() + length])
        position = chunk.end() + length
        position += 2 if body[position : position + 2] == b"\r\n" else body[position : position + 1] == b"\n"
    return b"".join(parts) if parts and position >= len(body) else body


def _unpack(body: bytes, coding: str, limit: int) -> bytes:
    try:
        if coding in ("gzip", "x-gzip", "deflate"):
            return zlib.decompressobj(_ANY_ZLIB).decompress(body, limit + 1)
        if coding == "br":
            streams = optional_module("fastwarc.stream_io", "reading web archives", "data")
            return bytes(streams.BrotliReader(io.BytesIO(body)).read(limit + 1))
    except (zlib.error, OSError):
        pass
    return body
