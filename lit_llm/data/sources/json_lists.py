"""JSON files that hold one list, read a row at a time."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from lit_llm.config.json_text import parse_json
from lit_llm.data.sources.encoding import counted, open_file, require_encoding
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.rows import BrokenRow

_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK_BYTES = 2**20
_LONGEST_MARK = 16
"""Of what stands in the way at so few characters from the end of the buffer, more may follow."""


def json_items(path: StoredFile, limit: int) -> Iterator[tuple[int | None, Any | BrokenRow, int]]:
    """Yields for each row of a list its number from 1, its value, and how many bytes of it became U+FFFD.

    Where a row is broken or too long, its end is not known, and nothing follows. A file that holds no list gives one
    broken row without a number.

    Args:
        path: The file.
        limit: A row of more characters is not kept.

    Raises:
        UserError: the file is no text.
    """
    encoding = require_encoding(path)
    with open_file(path) as file:
        window = _Window(file, encoding)
        if window.peek() != "[":
            yield None, BrokenRow("it is not a list of rows"), 0
            return
        window.begin += 1
        for number in itertools.count(1):
            if window.peek() == "]" and number == 1:
                return
            row = window.take_value(limit)
            yield number, row, window.take_invalid()
            if isinstance(row, BrokenRow):
                return
            if (mark := window.peek()) == "]":
                return
            if mark != ",":
                yield number + 1, BrokenRow("the list does not go on with a comma, nor end"), 0
                return
            window.begin += 1


class _Window:
    """The part of a text that is being parsed.

    Attributes:
        begin: Where in the buffer parsing has come to.
    """

    def __init__(self, file: Any, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="lit_llm.replace")
        self._scan = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._ended = False
        self._invalid = 0
        self.begin = 0

    def peek(self) -> str:
        """The next character that is no white space; an empty string at the end."""
        while True:
            self.begin = _SPACE.match(self._buffer, self.begin).end()  # type: ignore[union-attr]
            if self.begin < len(self._buffer):
                return self._buffer[self.begin]
            if self._ended:
                return ""
            self._grow()

    def take_invalid(self) -> int:
        """How many bytes became U+FFFD since the last call."""
        invalid, self._invalid = self._invalid, 0
        return invalid

    def take_value(self, limit: int) -> Any | BrokenRow:
        """The next value."""
        self.peek()
        while True:
            try:
                end = self._scan(self._buffer, self.begin)[1]
                if end < len(self._buffer) or self._ended:
                    value = parse_json(self._buffer[self.begin : end])
                    self.begin = end
                    return value
            except json.JSONDecodeError as error:
                goes_on = "Unterminated string" in error.msg or error.pos > len(self._buffer) - _LONGEST_MARK
                if self._ended or not goes_on:
                    return BrokenRow(error.msg)
            except (ValueError, RecursionError) as error:
                return BrokenRow(str(error))
            if len(self._buffer) - self.begin > limit:
                return BrokenRow()
            self._grow()

    def _grow(self) -> None:
        # What is unfinished is parsed again, and so it must at least double each time.
        chunk = self._file.read(max(_CHUNK_BYTES, len(self._buffer) - self.begin))
        self._ended = not chunk
        text, invalid = counted(lambda: self._decoder.decode(chunk, final=not chunk))
        self._buffer, self.begin = self._buffer[self.begin :] + text, 0
        self._invalid += invalid
