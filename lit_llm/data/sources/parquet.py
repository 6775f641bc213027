"""Rows and texts of parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.data.sources.document import Span
from lit_llm.data.sources.encoding import counted
from lit_llm.data.sources.origin import ORIGIN_FIELDS, Origin
from lit_llm.data.sources.remote import StoredFile
from lit_llm.data.sources.source import Piece

_PARQUET_ROWS = 1024
_BATCH_BYTES = 16 * 2**20


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, all columns; None stands for a date or time that Python's types do not hold.

    Raises:
        UserError: it is no readable parquet file, or a column has what cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            first = 1
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                rows = f"rows {first:,} to {first + batch.num_rows - 1:,}"
                columns = [
                    _column(batch.column(place), f"{path}: column {name!r}, {rows}")
                    for place, name in enumerate(batch.schema.names)
                ]
                for row in range(batch.num_rows):
                    yield {name: values[row] for name, values in zip(batch.schema.names, columns, strict=True)}
                first += batch.num_rows
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _column(column: Any, where: str) -> list[Any]:
    try:
        return _python_values(column)
    except (ValueError, OverflowError, LookupError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: cannot be read ({reason}); correct the values, or leave the column out") from None


def parquet_texts(path: Path, key: str, field: str) -> Iterator[Piece]:
    """Yields the texts in the column `field`, each a document; `key` names the file.

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
            for (text, invalid), origin in zip(_decoded(batch.column(field)), origins, strict=True):
                where = f"{path} row {index}"
                if text is None:
                    raise UserError(f"{where}: field {field!r} is NoneType, not a string; leave the row out")
                yield Piece(text, f"{key}:{index}", text, True, invalid, key, origin=origin)
                index += 1


def _origins(batch: Any, names: list[str], key: str, first: int) -> list[Origin]:
    """What the columns of these names say of each row of a batch; `key` with the number of a row names it."""
    columns = {name: [value for value, _ in _values(batch.column(name))] for name in names}
    rows = ({name: values[row] for name, values in columns.items()} for row in range(batch.num_rows))
    return [Origin.of_row(row, key.format(first + number)) for number, row in enumerate(rows)]


def parquet_scalars(path: StoredFile, span: Span | None = None) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Yields the rows of a file in batches whose memory is bounded; a nested column is not read, and each of its values
    is an empty dict or list.

    Args:
        path: The file.
        span: Read only these row groups.

    Returns:
        The number of each row from 0, its values, and how many bytes of it became U+FFFD.

    Raises:
        OSError: it is no parquet file, or is broken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as stored, pq.ParquetFile(stored) as file:
            names = [field.name for field in file.schema_arrow if not _is_nested(field.type)]
            nested = {field.name: _empty(field.type) for field in file.schema_arrow if _is_nested(field.type)}
            number, groups = 0, range(file.num_row_groups)
            if span is not None:
                number, groups = span.rows_before, groups[span.begin : span.end]
            for group in groups:
                found = file.metadata.row_group(group)
                rows = max(1, min(_PARQUET_ROWS, _BATCH_BYTES * found.num_rows // max(1, found.total_byte_size)))
                for batch in file.iter_batches(rows, row_groups=[group], columns=names):
                    columns = [_values(batch.column(name)) for name in names]
                    for index in range(batch.num_rows):
                        row = {name: column[index][0] for name, column in zip(names, columns, strict=True)}
                        yield number, {**row, **nested}, sum(column[index][1] for column in columns)
                        number += 1
    except pa.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from None


def _is_nested(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind))


def _empty(kind: Any) -> dict[str, Any] | list[Any]:
    import pyarrow as pa

    return {} if pa.types.is_struct(kind) or pa.types.is_map(kind) else []


def _values(column: Any) -> list[tuple[Any, int]]:
    """Each value of a column, and how many bytes of it became U+FFFD."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind in (pa.string(), pa.large_string(), pa.string_view()):
        return list(_decoded(column))
    return [(value, 0) for value in _python_values(column)]


def _python_values(column: Any) -> list[Any]:
    """Each value of a column; None for a date or time that Python's types do not hold, as one of the year 10000."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        # Python's times have microseconds.
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, LookupError):  # the last is of an unknown time zone
        if not pa.types.is_temporal(kind):
            raise
        return [_time_or_none(value) for value in column]


def _time_or_none(value: Any) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, LookupError):
        return None


def _decoded(column: Any) -> Iterator[tuple[str | None, int]]:
    """The strings of a column; pyarrow does not check that they are valid UTF-8, and fails on those that are not."""
    import pyarrow as pa

    for value in column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
        yield (None, 0) if value is None else counted(lambda value=value: value.decode("utf-8", "lit_llm.replace"))
