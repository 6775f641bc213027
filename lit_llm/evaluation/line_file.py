"""Files of JSON lines that only grow, so that work that was killed goes on where it stood."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.json_text import parse_json


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the objects of a file, and how many bytes its whole lines take: a killed process leaves half a line.

    Raises:
        UserError: a line before the last is damaged, or the file cannot be read.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    whole = data.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{path}:{number}: damaged; remove the line, and what it said is asked again")
        lines.append(value)
    return lines, whole


class LineFile:
    """A file of JSON lines that only grows. Half a line at its end, of a process that was killed, is taken off.

    Args:
        path: the file; its folder exists.

    Attributes:
        lines: the objects in it, in order.

    Raises:
        UserError: a line before the last is damaged, or the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines, whole = read_lines(path)
        try:
            self._file = path.open("ab", buffering=0)
            self._file.truncate(whole)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def add(self, *lines: Mapping[str, Any]) -> None:
        """Write lines; a process that is killed after this has lost nothing.

        Raises:
            UserError: the disk is full.
        """
        self._write(lines)
        self.lines += map(dict, lines)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Put the file on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()
