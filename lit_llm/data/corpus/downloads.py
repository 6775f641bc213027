"""Threads that fetch what is asked for: at once and waited for, or in the background."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import lru_cache
from queue import PriorityQueue
from typing import Any

Calls = dict[Hashable, Callable[[], Any]]


def downloads(threads: int) -> Downloads:
    """The threads of this process: they, and locks that one may hold, do not survive a fork."""
    return _downloads(threads, os.getpid())


@lru_cache(maxsize=8)
def _downloads(threads: int, process: int) -> Downloads:
    return Downloads(threads)


class Downloads:
    """Makes calls in a few threads; what is asked for again meanwhile is not called twice.

    What is waited for comes before what is fetched ahead. The threads do not keep a process from ending.

    Args:
        threads: how many calls run at once.
    """

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._asked: dict[Hashable, Future[None]] = {}
        self._queue: PriorityQueue[tuple[int, int, Hashable, Callable[[], Any], Future[None]]] = PriorityQueue()
        self._count = itertools.count()
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True, name="downloads").start()

    def now(self, calls: Calls) -> None:
        """Returns once all calls are made.

        Args:
            calls: by what each of them fetches.

        Raises:
            Exception: what a call raised, the first of them if there are several.
        """
        for future in [self._ask(key, call, 0) for key, call in calls.items()]:
            future.result()

    def later(self, calls: Calls) -> None:
        """Makes calls in the background; where one fails, nobody is told."""
        for key, call in calls.items():
            self._ask(key, call, 1)

    def _ask(self, key: Hashable, call: Callable[[], Any], priority: int) -> Future[None]:
        with self._lock:
            known = key in self._asked
            future = self._asked.setdefault(key, Future())
            if not known or priority == 0:  # what is ahead in the queue and waited for by now is queued before that
                self._queue.put((priority, next(self._count), key, call, future))
        return future

    def _work(self) -> None:
        while True:
            _, _, key, call, future = self._queue.get()
            with self._lock:
                if future.running() or future.done():
                    continue
                future.set_running_or_notify_cancel()
            error = None
            try:
                call()
            except BaseException as caught:
                error = caught
            with self._lock:
                del self._asked[key]
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
