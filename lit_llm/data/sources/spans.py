"""Large files cut into spans, so that several processes read one file at the same time."""

from __future__ import annotations

from pathlib import Path

from lit_llm.data.sources.document import Span
from lit_llm.data.sources.encoding import find_encoding

SPAN_BYTES = 64 * 2**20
"""About the size of a span; a file that is no larger is not cut."""
_CHUNK_BYTES = 2**22


def archive_spans(size: int) -> list[Span]:
    """Spans of a web archive; its records are found by how they begin, and nothing is read here.

    Args:
        size: Of the file, in bytes.
    """
    begins = range(0, size, SPAN_BYTES)
    return [Span(begin, begin + SPAN_BYTES if begin + SPAN_BYTES < size else None) for begin in begins]


def line_spans(path: Path, size: int) -> list[Span]:
    """Spans of a file that has a row on each line, whose lines are counted; none if it is not in UTF-8.

    Raises:
        OSError: the file cannot be read.
    """
    if not (find_encoding(path) or "").startswith("utf-8"):
        return []
    spans, ends = [], 0
    chunk = b"\n"
    with path.open("rb", buffering=0) as file:
        for span in archive_spans(size):
            # The line that the first byte of the span belongs to begins before it, unless a line has ended just there.
            begun = ends if chunk.endswith(b"\n") else ends + 1
            spans.append(Span(span.begin, span.end, begun))
            left = 0 if span.end is None else span.end - span.begin
            while left and (more := file.read(min(left, _CHUNK_BYTES))):
                chunk, ends, left = more, ends + more.count(b"\n"), left - len(more)
    return spans


def parquet_spans(path: Path) -> list[Span]:
    """Spans of a parquet file, in whole row groups.

    Raises:
        OSError: it is no parquet file, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as stored, pq.ParquetFile(stored) as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            sizes = [sum(group.column(n).total_compressed_size for n in range(group.num_columns)) for group in groups]
            rows = [group.num_rows for group in groups]
    except pa.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from None
    spans, begin, size = [], 0, 0
    for number, more in enumerate(sizes):
        if number > begin and size + more > SPAN_BYTES:
            spans.append(Span(begin, number, sum(rows[:begin])))
            begin, size = number, 0
        size += more
    return [*spans, Span(begin, None, sum(rows[:begin]))]
