"""Texts of evaluations, read row by row from the files that people keep them in."""

from __future__ import annotations

import csv
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.data.sources.encoding import read_lines, read_text
from lit_llm.data.sources.files import content_suffix, find_files
from lit_llm.data.sources.rows import ROW_SUFFIXES, iterate_rows

Passage = list[tuple[int, str]]
"""Texts that follow one another, each with the number of its row: the fields of a row, or the lines of a paragraph."""

_TEXT_SUFFIXES = (".txt", ".md")


def evaluation_files(paths: list[str]) -> list[Path]:
    """The files that evaluations are read from, each once, in the order in which they are named.

    Raises:
        UserError: none is named, or one does not exist or is of a kind that cannot be read.
    """
    if not paths:
        raise UserError("files is empty; name the evaluations, as in files: [gsm8k_test.jsonl, 'mmlu/test/*.csv']")
    files: dict[Path, None] = {}
    for path in paths:
        found = find_files(path, "files")[1]
        readable = [file for file in found if content_suffix(file) in (*ROW_SUFFIXES, ".csv", *_TEXT_SUFFIXES)]
        if not readable:
            raise UserError(
                f"files {path!r}: no evaluation there; give files that end in .jsonl, .json, .csv, .parquet or .txt"
            )
        files.update(dict.fromkeys(readable))
    return list(files)


def passages(path: Path, fields: list[str] | None) -> Iterator[Passage]:
    """Yields the texts of a file, in order.

    A row of .jsonl, .json, .csv or .parquet is a passage, its fields are the texts. In a text file a paragraph is a
    passage and a line is a row. Rows are numbered as `iterate_rows` does it, those of .csv and lines from 1.

    Args:
        path: Of one of the kinds that `evaluation_files` gives.
        fields: Names of fields, or for a .csv numbers of columns from 1; None: all that have text. A list or an object
            in a field has the texts that are in it.

    Raises:
        UserError: the file cannot be read, or a row lacks a field.
    """
    suffix = content_suffix(path)
    try:
        if suffix in _TEXT_SUFFIXES:
            yield from _paragraphs(path)
        elif suffix == ".csv":
            yield from _csv_rows(path, fields)
        else:
            for _, number, row in iterate_rows(str(path), "files"):
                yield [
                    (number, text) for value in _values(row, fields, f"{path} row {number}") for text in _texts(value)
                ]
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); repair or remove it") from None


def _paragraphs(path: Path) -> Iterator[Passage]:
    passage: Passage = []
    for number, (line, invalid) in enumerate(read_lines(path), start=1):
        if invalid:
            raise UserError(f"{path}, line {number}: {invalid} bytes are not UTF-8; write the file again as UTF-8")
        if line.strip():
            passage.append((number, line))
        elif passage:
            yield passage
            passage = []
    yield passage


def _csv_rows(path: Path, fields: list[str] | None) -> Iterator[Passage]:
    csv.field_size_limit(sys.maxsize)
    columns: list[int] | None = None
    try:
        for number, row in enumerate(csv.reader(io.StringIO(read_text(path), newline="")), start=1):
            if fields is not None and columns is None:
                columns = _columns(row, fields, path)
                if not all(field.isdecimal() for field in fields):
                    continue
            if columns is not None and row and max(columns) >= len(row):
                raise UserError(f"{path} row {number}: {len(row)} columns, and fields names column {max(columns) + 1}")
            chosen = row if columns is None else [row[column] for column in columns if row]
            yield [(number, text) for text in chosen]
    except csv.Error as error:
        raise UserError(f"{path}: not a readable .csv ({error}); repair the file") from None


def _columns(head: list[str], fields: list[str], path: Path) -> list[int]:
    """Places of the fields in a row, by the first row of the file or by number."""
    if all(field.isdecimal() and int(field) >= 1 for field in fields):
        return [int(field) - 1 for field in fields]
    for field in fields:
        if field not in head:
            raise UserError(
                f"{path}: no column {field!r}; set fields to some of: {', '.join(head)}, or without a header to "
                "numbers of columns from 1"
            )
    return [head.index(field) for field in fields]


def _values(row: Any, fields: list[str] | None, where: str) -> list[Any]:
    if fields is None:
        return [row]
    if not isinstance(row, dict):
        raise UserError(f"{where}: the row is {type(row).__name__}, not an object with fields; set fields to null")
    for field in fields:
        if field not in row:
            raise UserError(f"{where}: no field {field!r}; set fields to some of: {', '.join(map(str, row))}")
    return [row[field] for field in fields]


def _texts(value: Any) -> Iterator[str]:
    """All strings within a value of JSON, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inside in value.values():
            yield from _texts(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _texts(inside)
