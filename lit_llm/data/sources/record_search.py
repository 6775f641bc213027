"""Where the next record of a web archive begins, seen from anywhere in it."""

from __future__ import annotations

import io
import re
import zlib

from lit_llm.data.sources.remote import StoredFile

_WINDOW_BYTES = 2**20
_PROBE_BYTES = 2**18
"""Enough of a member for its first bytes: a block of zstandard has at most 128 KiB."""
_GZIP = b"\x1f\x8b\x08"
_RECORD = b"WARC/"
_BEGINNING = re.compile(rb"\x1f\x8b\x08|\x28\xb5\x2f\xfd|(?<=\n)WARC/1\.\d\r?\n")


def next_record(path: StoredFile, offset: int, end: int | None = None) -> int | None:
    """Where the first record begins after a place in an archive.

    Records are found by how they begin: as a member of gzip or a frame of zstandard with a record inside, or plainly.

    Args:
        path: The archive.
        offset: The place, in bytes.
        end: Only what begins before is looked for; None: up to the end of the archive.

    Returns:
        Its first byte, which is after `offset`; None where no record begins there.
    """
    with path.open("rb") as file:
        begin = offset
        while True:
            file.seek(begin)
            window = file.read(_WINDOW_BYTES + _PROBE_BYTES)
            for found in _BEGINNING.finditer(window):
                place = found.start()
                if end is not None and begin + place >= end:
                    return None
                if begin + place > offset and _holds_record(window[place : place + _PROBE_BYTES]):
                    return begin + place
            begin += _WINDOW_BYTES
            if len(window) < _WINDOW_BYTES + _PROBE_BYTES or (end is not None and begin >= end):
                return None


def _holds_record(data: bytes) -> bool:
    try:
        return data.startswith(_RECORD) or _first_bytes(data) == _RECORD
    except (zlib.error, OSError):
        return False


def _first_bytes(data: bytes) -> bytes:
    """What the compressed bytes begin with, unpacked."""
    if data.startswith(_GZIP):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, len(_RECORD))
    import pyarrow as pa

    return bytes(pa.CompressedInputStream(io.BytesIO(data), "zstd").read(len(_RECORD)))
