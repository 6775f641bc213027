"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False) -> str:
    """A table in Markdown.

    Args:
        header: names of the columns.
        rows: their cells.
        aligned: fill the columns up to one width each, for a table that is read in a terminal as well.
    """
    widths = [max(map(len, column)) if aligned else 0 for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * max(width, 3) for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
