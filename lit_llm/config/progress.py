"""Progress of what takes a while: a bar on stderr where that is a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from lit_llm.config.notices import is_first_process

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0
"""Where stderr is not a terminal, a line of progress comes at most this often."""
SECONDS_WORTH_A_LINE = 1.0
"""Where stderr is not a terminal, what is done sooner than this is not told at all."""


@contextmanager
def progress(
    description: str, total: int | None = None, unit: str = "rows", shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show on rank 0 how far a block of work has come.

    On a terminal this is a bar. In a pipe or a file it is a line every `SECONDS_BETWEEN_LINES` and one at the end; work
    that takes less than `SECONDS_WORTH_A_LINE` prints nothing there.

    Args:
        description: what is going on, such as "tokenising rows".
        total: units at the end, or None where that is not known.
        unit: what is counted; "bytes" are shown as kB, MB and so on, with their speed.
        shown: False shows nothing.

    Yields:
        A function to call with the units done since the last call.
    """
    if not shown or not is_first_process():
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        lines = _Lines(description, total, unit)
        yield lines.advance
        lines.end()


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "rows") -> Iterator[T]:
    """Yield `items`, and show with `progress` how many have been dealt with.

    Args:
        items: what to go through.
        description: see `progress`.
        total: number of items; None takes their length, where they have one.
        unit: what an item is.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


class LineClock:
    """Tells when the next line of progress is due where no bar can be drawn."""

    def __init__(self) -> None:
        self.started = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def due(self) -> bool:
        """Whether `SECONDS_BETWEEN_LINES` have passed since the last line."""
        return time.monotonic() - self._last >= SECONDS_BETWEEN_LINES

    def restart(self) -> None:
        """Note that a line has been printed now."""
        self._last = time.monotonic()


def in_words(seconds: float) -> str:
    """A time of some seconds as a reader says it: "40 seconds", "3 minutes", "1 hour 20 minutes", "2 days 3 hours"."""
    whole = max(1, round(seconds))
    if whole < 90:
        return _count(whole, "second")
    minutes = round(seconds / 60)
    if minutes < 60:
        return _count(minutes, "minute")
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return _count(hours, "hour") + (f" {_count(minutes, 'minute')}" if minutes else "")
    days, hours = divmod(hours, 24)
    return _count(days, "day") + (f" {_count(hours, 'hour')}" if hours else "")


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


@contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    # a bar over bytes stays when it is full: its speed is worth knowing
    with Progress(*columns, console=Console(stderr=True), transient=unit != "bytes") as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """Lines of progress for a pipe or a file."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self.clock = LineClock()

    def advance(self, count: int) -> None:
        """Count what has been done, and print a line if one is due."""
        self.done += count
        if self.clock.due():
            self.clock.restart()
            print(f"{self.description}: {self._so_far()}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Print the last line, of how much has been done and how long it took."""
        if self.clock.seconds >= min(SECONDS_WORTH_A_LINE, SECONDS_BETWEEN_LINES):
            amount, took = self._amount(self.done), in_words(self.clock.seconds)
            print(f"{self.description}: {amount} in {took}", file=sys.stderr, flush=True)

    def _so_far(self) -> str:
        if not self.total:
            return f"{self._amount(self.done)} so far"
        share = min(1.0, self.done / self.total)
        text = f"{share:.0%} of {self._amount(self.total)}"
        if 0.0 < share < 1.0:
            text += f", about {in_words(self.clock.seconds * (1 - share) / share)} left"
        return text

    def _amount(self, count: int) -> str:
        if self.unit != "bytes":
            return f"{count:,} {self.unit}"
        from rich.filesize import decimal

        return decimal(count)
