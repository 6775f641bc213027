"""Processes of this machine that do the tasks of a recipe."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

from lit_llm.config import UserError

Advance = Callable[[int], None]


class Workers(Protocol):
    """Whatever does tasks: this process, processes of this machine, a cluster.

    Attributes:
        number: How many tasks are done at a time.
    """

    number: int

    def run(self, function: Callable[[Any], None], items: Sequence[Any], advance: Advance | None = None) -> None:
        """Calls a function that can be pickled for every item, in any order, and returns when all are done.

        Args:
            function: Leaves what it finds out in files.
            items: Can be pickled.
            advance: Is called with the index of each item that has been done, where that is known.
        """


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalWorkers:
    """This process, or several that it starts and that end with it, even if it is killed.

    Args:
        number: How many; 1 is this process itself.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def run(self, function: Callable[[Any], None], items: Sequence[Any], advance: Advance | None = None) -> None:
        """See `Workers`.

        Raises:
            UserError: a process was killed.
        """
        if self.number == 1 or len(items) < 2:
            for index, item in enumerate(items):
                function(item)
                if advance:
                    advance(index)
            return
        try:
            pool = self._start()
            futures = {pool.submit(function, item): index for index, item in enumerate(items)}
            for future in as_completed(futures):
                future.result()
                if advance:
                    advance(futures.pop(future))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, as the system does when memory runs out; what is finished is kept: run "
                "the same command again, with a smaller num_workers or part_mib"
            ) from None

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
            context = multiprocessing.get_context(kind)
            if kind == "forkserver":
                context.set_forkserver_preload([__package__ + ".tasks"])
            watched, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.number, context, _begin_worker, (watched,))
        return self._pool

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if kind is not None and self._lifeline is not None:
            self._lifeline.close()  # what is being done is not waited for
        with contextlib.suppress(BrokenProcessPool):
            self._pool.shutdown(cancel_futures=True)
        if self._lifeline is not None:
            self._lifeline.close()


def _begin_worker(lifeline: Connection) -> None:
    """Leaves Ctrl-C to the process that started this one, and ends with it."""
    import pyarrow

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pyarrow.set_cpu_count(1)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
