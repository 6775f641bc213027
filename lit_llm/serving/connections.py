"""uvicorn, with limits to the time in which the head of a request must come, and an answer must be read."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol


def server_config(app: ASGIApp, read_timeout: float, write_timeout: float = math.inf, **options: Any) -> uvicorn.Config:
    """Return the configuration by which uvicorn serves an application.

    Args:
        app: the application.
        read_timeout: seconds in which the head of a request must have come; the connection is closed after them.
        write_timeout: seconds that a client may let an answer lie while there is no room for more of it, and that
            what is left of the last one may take; the connection is broken off after them.
        options: more of uvicorn's.
    """

    class Protocol(_Patient):
        patience, write_patience = read_timeout, write_timeout

    return uvicorn.Config(app, http=Protocol, log_config=None, log_level="warning", access_log=False, **options)


class _Patient(AutoHTTPProtocol):
    """A connection that is closed where a request begins and does not go on, and where an answer is not read.

    uvicorn itself closes only those that are silent after an answer. A connection with bytes to write is not closed
    before the client has taken them, unless it is aborted.
    """

    patience: float
    write_patience: float
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        before = self.cycle  # the request whose head came last
        if self._timer is None and (before is None or before.response_complete):
            self._expect()
        super().data_received(data)
        if self.cycle is not before:
            self._expect_nothing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._expect_no_reading()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._expect_no_reading()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._timer = self.loop.call_later(self.patience, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._expect_reading()

    def _expect_reading(self) -> None:
        if self._write_timer is None and self.write_patience < math.inf:
            self._write_timer = self.loop.call_later(self.write_patience, self.transport.abort)

    def _expect_no_reading(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
