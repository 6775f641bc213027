"""The rows of files and data sets that have rows: JSON, JSON lines, parquet, and the hub's."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.json_text import parse_json
from lit_llm.data.sources.document import Span
from lit_llm.data.sources.encoding import counted, open_file, read_lines, require_encoding
from lit_llm.data.sources.files import COMPRESSED_SUFFIXES, content_suffix, find_files
from lit_llm.data.sources.hub import HubDataset
from lit_llm.data.sources.parquet import parquet_rows
from lit_llm.data.sources.remote import StoredFile

ROW_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".parquet"})
"""The suffixes of files that hold rows; one of `COMPRESSED_SUFFIXES` may follow each but .parquet."""

_ROW_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class BrokenRow:
    """Stands for a row that cannot be read; `reason` says why, and is empty where it is longer than was allowed."""

    reason: str = ""


def json_lines(
    path: StoredFile, limit: int = -1, span: Span | None = None
) -> Iterator[tuple[int, Any | BrokenRow, int]]:
    """Yields for each row of a .jsonl file its line number from 1, its value, and how many bytes became U+FFFD.

    Args:
        path: The file.
        limit: A longer line is not kept; see `read_lines`.
        span: Read only this part of the file; see `read_lines`.

    Raises:
        UserError: the file is no text.
    """
    first = 1 if span is None else span.rows_before + 1
    for number, (line, invalid) in enumerate(read_lines(path, limit, span), start=first):
        if line is None:
            yield number, BrokenRow(), 0
        elif line.strip():
            try:
                yield number, parse_json(line), invalid
            except ValueError as error:
                yield number, BrokenRow(str(getattr(error, "msg", error))), invalid


def json_line_rows(path: Path) -> Iterator[tuple[int, Any, int]]:
    """As `json_lines`.

    Raises:
        UserError: a line is not JSON.
    """
    for number, row, invalid in json_lines(path):
        if isinstance(row, BrokenRow):
            raise UserError(f"{path}:{number}: broken JSON ({row.reason}); repair or remove the line")
        yield number, row, invalid


def json_list_rows(path: Path) -> Iterator[tuple[int, Any, int]]:
    """Yields the rows of a .json file with a list, as `json_line_rows` does; its first row has all replaced bytes.

    Raises:
        UserError: the file is not JSON, or has no list.
    """
    encoding = require_encoding(path)
    with open_file(path) as file:
        text, invalid = counted(lambda: file.read().decode(encoding, "lit_llm.replace"))
    try:
        rows = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_json(text.lstrip().partition("\n")[0]):
            raise UserError(f"{path}: it has a row per line, as .jsonl has; name it .jsonl") from None
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg}); repair the file") from None
    except ValueError as error:
        raise UserError(f"{path}{_unreadable_row(text)}: broken JSON ({error}); repair the file") from None
    if not isinstance(rows, list):
        what = "an object" if isinstance(rows, dict) else "a single value"
        raise UserError(f"{path}: {what}, not a list of rows; write the rows as [{{...}}, {{...}}], or leave it out")
    for number, row in enumerate(rows, start=1):
        yield number, row, invalid if number == 1 else 0


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _unreadable_row(text: str) -> str:
    """Names the row of a JSON list that stands in the way of reading it, as one too deeply nested does."""
    decoder, number, begin = json.JSONDecoder(), 1, _ROW_GAP.match(text, text.find("[") + 1).end()
    try:
        while True:
            end = decoder.raw_decode(text, begin)[1]
            parse_json(f"[{text[begin:end]}]")
            number, begin = number + 1, _ROW_GAP.match(text, end).end()
    except (ValueError, RecursionError):
        return f", row {number:,}"


def iterate_rows(path: str, option: str) -> Iterator[tuple[str, int, Any]]:
    """Yields each row of a path as its file, its number (of the line in .jsonl, else of the row; from 1) and its value.

    Args:
        path: A file, a folder or glob (of which files without rows are passed over), or hf:NAME[:CONFIG[:SPLIT]].
        option: What gave the path, for errors.

    Raises:
        UserError: there is no such file or data set, or it has no rows or is broken.
    """
    if path.startswith("hf:"):
        for number, row in enumerate(HubDataset.parse(path, option).rows(), start=1):
            yield path, number, row
        return
    files = [file for file in find_files(path, option)[1] if has_rows(file)]
    if not files:
        raise UserError(f"{option} {path!r}: no rows there; give files that end in .json, .jsonl or .parquet")
    for file in files:
        try:
            for number, row in _rows_of(file):
                yield str(file), number, row
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{file}: cannot be read ({error}); repair or remove it") from None


def has_rows(path: StoredFile) -> bool:
    """Whether a file is, by its name, one that has rows."""
    is_packed_parquet = content_suffix(path) == ".parquet" and path.suffix.lower() in COMPRESSED_SUFFIXES
    return content_suffix(path) in ROW_SUFFIXES and not is_packed_parquet


def _rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    if content_suffix(path) == ".parquet":
        yield from enumerate(parquet_rows(path), start=1)
        return
    rows = json_list_rows(path) if content_suffix(path) == ".json" else json_line_rows(path)
    for number, row, invalid in rows:
        if invalid:
            where = "the file" if content_suffix(path) == ".json" else f"row {number}"
            raise UserError(f"{path}, {where}: {invalid} bytes are not UTF-8; write the file again as UTF-8")
        yield number, row
