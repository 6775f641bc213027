"""uvicorn, with a limit to the time in which the head of a request must come."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol


def server_config(app: ASGIApp, read_timeout: float, **options: Any) -> uvicorn.Config:
    """Return the configuration by which uvicorn serves an application.

    Args:
        app: the application.
        read_timeout: seconds in which the head of a request must have come; the connection is closed after them.
        options: more of uvicorn's.
    """

    class Protocol(_Patient):
        patience = read_timeout

    return uvicorn.Config(app, http=Protocol, log_config=None, log_level="warning", access_log=False, **options)


class _Patient(AutoHTTPProtocol):
    """A connection that is closed where a request begins and does not go on.

    uvicorn itself closes only those that are silent after an answer.
    """

    patience: float
    _timer: asyncio.TimerHandle | None = None

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

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._timer = self.loop.call_later(self.patience, self.transport.close)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
