"""A part of a corpus: some documents in a parquet file, whose bytes depend on the documents alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lit_llm.config.files import whole_file
from lit_llm.data.sources.document import SourceDocument

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("date", pa.string()),
        pa.field("license", pa.string()),
        pa.field("language", pa.string()),
        pa.field("metadata", pa.string()),
    ]
)
"""The columns of a part; `metadata` is JSON, or null where there is none."""
_ROW_GROUP_BYTES = 4 * 2**20
_ROW_GROUP_ROWS = 8192
_REPEATING = ["source", "license", "language"]


def text_bytes(text: str) -> int:
    """How long a text is in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class PartWriter(AbstractContextManager["PartWriter"]):
    """Writes the documents of a part, of which it holds a few MB at a time; the file is there once the block has ended.

    Args:
        path: The file, in a folder that exists. Where two processes write the same one, one of them wins.
    """

    def __init__(self, path: Path) -> None:
        self._whole = whole_file(path, shared=True)
        self._columns: list[list[Any]] = [[] for _ in SCHEMA]
        self._bytes = 0

    def __enter__(self) -> PartWriter:
        partial = self._whole.__enter__()
        # Through a file of Python's, as an error of Arrow's own files does not say that the disk is full.
        self._file = partial.open("wb")
        self._parquet = pq.ParquetWriter(
            self._file,
            SCHEMA,
            compression="zstd",
            compression_level=3,
            use_dictionary=_REPEATING,
            write_statistics=False,
            store_schema=False,
        )
        return self

    def add(self, document: SourceDocument, num_bytes: int) -> None:
        """Appends a document, whose text takes so many bytes in UTF-8."""
        row = (
            document.text,
            document.id,
            document.source,
            document.digest,
            document.url,
            document.date,
            document.license,
            document.language,
            json.dumps(document.metadata) if document.metadata else None,
        )
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self._bytes += num_bytes
        if self._bytes >= _ROW_GROUP_BYTES or len(self._columns[0]) >= _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, SCHEMA, strict=True)]
        self._parquet.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self._columns, self._bytes = [[] for _ in SCHEMA], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                if self._columns[0]:
                    self._flush()
                self._parquet.close()
                self._file.close()
            except BaseException as closing:
                self._leave(type(closing), closing, closing.__traceback__)
                raise
        self._leave(kind, error, trace)

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._parquet.is_open = False  # a later close would write to a file that is gone
            self._file.close()
        self._whole.__exit__(kind, error, trace)


def read_part(path: Path) -> Iterator[SourceDocument]:
    """Yields the documents of a part in order; a few MB of them are in memory at a time."""
    with path.open("rb") as opened, pq.ParquetFile(opened) as file:
        for group in range(file.num_row_groups):
            columns = file.read_row_group(group, use_threads=False).to_pydict()
            metadata = columns.pop("metadata")
            rest = zip(*(columns[name] for name in SCHEMA.names[:-1]), strict=True)
            for (text, name, *fields), more in zip(rest, metadata, strict=True):
                yield SourceDocument(name, fields[0], text, *fields[1:], json.loads(more) if more else {})
