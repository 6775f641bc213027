"""What a command does whose output nobody reads any more, as where `head` has had its lines."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

_STATUS = 141  # what a shell gives a program that SIGPIPE has ended: 128 + 13


@contextlib.contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """End the process without a word, with status 141, once what it prints goes into a pipe that is closed.

    Other broken pipes, as those of a connection or of a process that died, are raised as they are.
    """
    try:
        try:
            yield
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # from rich, which has stdout go nowhere then
                raise SystemExit(_STATUS) from None
            sys.stdout.flush()  # here, as at the end Python would complain
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        closed = [_closed(stream) for stream in (sys.stdout, sys.stderr)]
        if not any(closed):
            raise
        raise SystemExit(_STATUS) from None


def _closed(stream: TextIO) -> bool:
    """Whether a stream's reader is gone; what is left in it is dropped then, as Python would try again at the end."""
    try:
        place = stream.fileno()
    except (OSError, ValueError):
        return False  # no stream of the system
    asked = select.poll()
    asked.register(place, 0)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in asked.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, place)
    os.close(nowhere)
    return True
