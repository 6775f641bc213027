"""How the bytes of a text file are read as text: UTF-8, or what a byte order mark says."""

from __future__ import annotations

import codecs
import io
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.data.sources.document import Span
from lit_llm.data.sources.opened_file import open_file
from lit_llm.data.sources.remote import StoredFile

# A mark of UTF-32 begins with one of UTF-16, and so comes first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_PROBE_BYTES = 8192


class _Invalid(threading.local):
    bytes = 0


_invalid = _Invalid()


def _count_and_replace(error: UnicodeError) -> tuple[str, int]:
    _invalid.bytes += error.end - error.start
    return "\ufffd", error.end


# As Python's error handler "replace", and it counts the bytes that it replaces.
codecs.register_error("lit_llm.replace", _count_and_replace)


def counted(decode: Callable[[], str]) -> tuple[str, int]:
    """Calls `decode`; returns what it gave, and how many bytes the error handler lit_llm.replace replaced in it."""
    before = _invalid.bytes
    text = decode()
    return text, _invalid.bytes - before


def marked_encoding(head: bytes) -> str | None:
    """The codec that a byte order mark says, one that takes the mark off; None without one."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def find_encoding(path: StoredFile) -> str | None:
    """The codec of a text file (unzipped where it is compressed), one that takes the byte order mark off.

    Returns:
        What the mark says, "utf-8" without one; None where there are NUL bytes that no mark explains: it is no text.
    """
    with open_file(path) as file:
        head = file.read(_PROBE_BYTES)
    encoding = marked_encoding(head) or "utf-8"
    return None if encoding.startswith("utf-8") and b"\0" in head else encoding


def require_encoding(path: StoredFile) -> str:
    """The codec of a file that has to be text; see `find_encoding`.

    Raises:
        UserError: the file is no text.
    """
    encoding = find_encoding(path)
    if encoding is None:
        raise UserError(
            f"{path}: not text, as it has NUL bytes and no byte order mark; leave it out, or write it again as UTF-8"
        )
    return encoding


def read_text(path: Path) -> str:
    """All of a text file that a user names, in UTF-8 or as its byte order mark says; any line end is read as \\n.

    Raises:
        UserError: the file is missing, cannot be read, or is in another encoding.
    """
    try:
        with open_file(path) as file:
            return io.TextIOWrapper(file, encoding=require_encoding(path)).read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}); write it again as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_lines(path: StoredFile, limit: int = -1, span: Span | None = None) -> Iterator[tuple[str | None, int]]:
    """The lines of a text file, ended by \\n alone, each with the number of bytes in it that became U+FFFD.

    Args:
        path: The file, unzipped where it is compressed.
        limit: A line that has not ended after so many bytes (in UTF-16 and UTF-32 characters) comes as None, and is
            not kept in memory; -1: none does.
        span: Bytes of a file in UTF-8 that is not compressed; lines that begin in them are read to their ends.

    Raises:
        UserError: the file is no text.
    """
    encoding, begin, end = require_encoding(path), 0, None
    if span is not None:
        begin, end = span.begin, span.end
    with open_file(path) if span is None else path.open("rb") as file:
        if not encoding.startswith("utf-8"):
            wide = io.TextIOWrapper(file, encoding=encoding, errors="lit_llm.replace", newline="\n")
            while True:
                line, invalid = counted(lambda: wide.readline(limit))
                if not line:
                    return
                yield (line, invalid) if _ends(line, limit) else (_pass_line(wide, "\n"), 0)
        if begin:
            file.seek(begin - 1)
            _pass_line(file, b"\n")
        codec = "utf-8" if begin else encoding
        while (end is None or file.tell() < end) and (line := file.readline(limit)):
            if _ends(line, limit):
                yield counted(lambda line=line, codec=codec: line.decode(codec, "lit_llm.replace"))
            else:
                yield _pass_line(file, b"\n"), 0
            codec = "utf-8"


def _ends(line: str | bytes, limit: int) -> bool:
    """Whether a line that was read up to `limit` is whole."""
    return len(line) != limit or line[-1:] in ("\n", b"\n")


def _pass_line(file: Any, end: str | bytes) -> None:
    """Reads on to the end of a line, of which little is held at a time."""
    while (rest := file.readline(_PROBE_BYTES)) and not rest.endswith(end):
        pass
