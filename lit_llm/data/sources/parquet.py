"""Rows and texts of parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.data.sources.encoding import counted
from lit_llm.data.sources.origin import ORIGIN_FIELDS, Origin
from lit_llm.data.sources.source import Piece

_PARQUET_ROWS = 1024


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, all columns.

    Raises:
        UserError: it is no readable parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def parquet_texts(path: Path, key: str, field: str) -> Iterator[Piece]:
    """Yield the texts in the column `field`, each a document; `key` names the file.

    Raises:
        UserError: it is no parquet file, or has no such column of text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    with file:
        if field not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path}: no column {field!r}; set corpus.text_field to one of: {names}")
        kind = file.schema_arrow.field(field).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if kind not in (pa.string(), pa.large_string(), pa.string_view()):
            raise UserError(f"{path}: column {field!r} is {kind}, not string; set corpus.text_field to a text column")
        known = [name for name in ORIGIN_FIELDS if name != field and name in file.schema_arrow.names]
        index = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[field, *known]):
            origins = _origins(batch, known, f"{key}:{{}}", index)
            # As bytes: pyarrow does not check that its strings are valid UTF-8, and fails on those that are not.
            texts = batch.column(field).cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
            for value, origin in zip(texts, origins, strict=True):
                where = f"{path} row {index}"
                if value is None:
                    raise UserError(f"{where}: field {field!r} is NoneType, not a string; leave the row out")
                text, invalid = counted(lambda value=value: value.decode("utf-8", "lit_llm.replace"))
                yield Piece(text, f"{key}:{index}", text, True, invalid, key, origin=origin)
                index += 1


def _origins(batch: Any, names: list[str], key: str, first: int) -> list[Origin]:
    """What the columns of these names say of each row of a batch; `key` with the number of a row names it."""
    import pyarrow as pa

    columns = {}
    for name in names:
        column = batch.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if kind in (pa.string(), pa.large_string(), pa.string_view()):
            values = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
            columns[name] = [None if value is None else value.decode("utf-8", "replace") for value in values]
        elif pa.types.is_integer(kind) or pa.types.is_date(kind):
            columns[name] = column.to_pylist()
        elif pa.types.is_timestamp(kind):  # Python's times have microseconds
            columns[name] = column.cast(pa.timestamp("us", kind.tz), safe=False).to_pylist()
    rows = ({name: values[row] for name, values in columns.items()} for row in range(batch.num_rows))
    return [Origin.of_row(row, key.format(first + number)) for number, row in enumerate(rows)]
