"""Progress over bytes of data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def byte_progress(description: str, total: int | None) -> Iterator[Any]:
    """A progress bar on stderr that counts bytes; shows nothing where stderr is not a terminal.

    Args:
        description: what is going on.
        total: bytes at the end, or None where that is not known.

    Yields:
        A function to call with the bytes done since the last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda num_bytes: progress.advance(task, num_bytes)
