"""Web archives for the tests, written by hand."""

from __future__ import annotations

import base64
import gzip
import hashlib

import zstandard

PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def http(body: bytes, content_type: str = "text/html; charset=utf-8", status: int = 200, more: str = "") -> bytes:
    """A response as a server sends it."""
    return f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n{more}\r\n".encode() + body


def record(number: int, block: bytes, kind: str = "response", more: str = "", digest: bool = False) -> bytes:
    """A record of a WARC file."""
    if digest:
        more += f"WARC-Block-Digest: sha1:{base64.b32encode(hashlib.sha1(block).digest()).decode()}\r\n"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:04}>\r\n"
        f"WARC-Date: 2024-05-06T07:08:{number % 60:02}Z\r\nWARC-Target-URI: https://example.org/{number}\r\n"
        f"{more}Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def page(number: int, words: int = 40) -> bytes:
    """A page of its own, that does not compress to almost nothing."""
    noise = hashlib.sha512(str(number).encode()).hexdigest()
    return f"<html><title>{number}</title><p>{' '.join(f'{noise}{index}' for index in range(words))}</html>".encode()
