"""Progress over bytes of data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from lit_llm.config.progress import progress


def byte_progress(description: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """Show how many bytes of data have been read; see `lit_llm.config.progress.progress`.

    Args:
        description: what is going on.
        total: bytes at the end, or None where that is not known.

    Returns:
        A context manager that gives a function to call with the bytes done since the last call.
    """
    return progress(description, total, "bytes")
