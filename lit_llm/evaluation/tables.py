"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False) -> str:
    """A table in Markdown; a line end in a cell becomes a space, and a bar is escaped.

    Args:
        header: names of the columns.
        rows: their cells.
        aligned: pad each column to one width, for a table that is read in a terminal as well.
    """
    texts = [[" ".join(cell.splitlines()).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*texts, strict=True)]
    lines = [texts[0], ["-" * max(width, 3) for width in widths], *texts[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
