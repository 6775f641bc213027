"""Documents of rows: JSON lines, JSON lists, parquet files and data sets of the hub."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import Skipped, SourceDocument, Span
from lit_llm.data.sources.encoding import find_encoding
from lit_llm.data.sources.files import content_suffix
from lit_llm.data.sources.json_lists import json_items
from lit_llm.data.sources.making import BINARY, BROKEN_FILE, BROKEN_ROW, TOO_LONG, DocumentMaker, UniqueIds, iso_date
from lit_llm.data.sources.parquet import parquet_scalars
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.rows import BrokenRow, json_lines
from lit_llm.data.sources.source import without_surrogates

_ROW_BYTES = 2
"""A row of JSON may be so many times as long as its text may be, as JSON spells some characters in more bytes."""
_FIELDS_BYTES = 2**16
_LONGEST_EXTRA = 1000


class RowDocuments:
    """Makes the documents of a unit's rows. An id that `id_field` gives is made unique as `UniqueIds` does.

    Args:
        config: Names the fields.
        maker: Of the source.
        is_only: Whether the source has no other unit. Otherwise the unit's name goes before an id that `id_field`
            gives, as others may have the same one; the field is then in the metadata, too.
    """

    def __init__(self, config: SourceConfig, maker: DocumentMaker, is_only: bool) -> None:
        self._config = config
        self._maker = maker
        self._is_only = is_only
        self._ids = UniqueIds()

    def of_row(self, row: Any, key: str, number: int, replaced: int = 0) -> SourceDocument | Skipped:
        """The document of a row; scalars in its further fields go into the metadata, but for long texts."""
        where, field = f"{key}:{number}", self._config.text_field
        if not isinstance(row, dict):
            return Skipped(where, "not an object", f"it is {type(row).__name__}")
        if row.get(field) is None:
            there = "it is null" if field in row else f"there are {', '.join(map(str, row)) or 'none'}"
            is_inside = "." in field and field.partition(".")[0] in row
            return Skipped(where, f"no field {field!r}", there + ("; no field is looked for in another" * is_inside))
        text = row[field]
        if not isinstance(text, str):
            return Skipped(where, f"field {field!r} is not text", f"it is {type(text).__name__}")
        config, used = self._config, {field}

        def take(name: str | None) -> Any:
            value = None if name is None else row.get(name)
            if value is not None:
                used.add(name)
            return value

        document_id: str | None = where
        if config.id_field is not None:
            document_id = self._id(take(config.id_field), number)
            if document_id is None:
                return Skipped(where, f"no field {config.id_field!r}", f"there are {', '.join(map(str, row))}")
            if not self._is_only:
                document_id = f"{key}:{document_id}"
                used.discard(config.id_field)
        date = iso_date(row.get(config.date_field)) if config.date_field else None
        if date is not None:
            used.add(config.date_field)
        url, license = (_words(take(name)) for name in (config.url_field, config.license_field))
        document = self._maker.make(document_id, text, replaced=replaced, url=url, date=date, license=license)
        if isinstance(document, SourceDocument):
            extra = {
                without_surrogates(str(name))[0]: _scalar(value) for name, value in row.items() if name not in used
            }
            document.metadata = {
                **{name: value for name, value in extra.items() if value is not None},
                **document.metadata,
            }
        return document

    def _id(self, value: Any, number: int) -> str | None:
        name = without_surrogates("" if value is None else str(value))[0]
        return self._ids.take(name, number) if name.strip() else None


def _words(value: Any) -> str | None:
    return without_surrogates(value)[0] if isinstance(value, str) and value.strip() else None


def _scalar(value: Any) -> Any:
    """The value where it is a number, a truth value, a date or a text that is not long; else None."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    return _words(value) if isinstance(value, str) and len(value) <= _LONGEST_EXTRA else None


def row_file_documents(
    path: StoredFile, key: str, config: SourceConfig, maker: DocumentMaker, is_only: bool, span: Span | None = None
) -> Iterator[SourceDocument | Skipped]:
    """Yields the documents of a file of rows; where it is not .parquet or .json, it has a row per line.

    `is_only` is that of `RowDocuments`; `span` is a part of a .jsonl or .parquet file.

    Raises:
        OSError, EOFError, zlib.error: The file cannot be read on.
    """
    documents, suffix = RowDocuments(config, maker, is_only), content_suffix(path)
    if suffix == ".parquet":
        rows = parquet_scalars(path, span)
    elif find_encoding(path) is None:
        yield Skipped(key, BINARY, "there are NUL bytes, and no byte order mark")
        return
    else:
        limit = _ROW_BYTES * maker.max_bytes + _FIELDS_BYTES
        rows = json_items(path, limit) if suffix == ".json" else json_lines(path, limit, span)
    for number, row, replaced in rows:
        if not isinstance(row, BrokenRow):
            yield documents.of_row(row, key, number, replaced)
        elif number is None:
            yield Skipped(key, BROKEN_FILE, row.reason)
        elif row.reason:
            yield Skipped(f"{key}:{number}", BROKEN_ROW, row.reason)
        else:
            yield Skipped(f"{key}:{number}", TOO_LONG, "the row was not read to its end")
