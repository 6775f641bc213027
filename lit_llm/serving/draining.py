"""uvicorn's server, which ends in two steps: it finishes what runs while it refuses new requests, and then closes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from lit_llm.serving.operations import Operations
from lit_llm.serving.registry import Registry

# Seconds that connections have to close once nothing runs any more.
_TO_CLOSE = 5


class DrainingServer(uvicorn.Server):
    """A server that drains on SIGTERM or SIGINT; a second signal ends what is left at once.

    Args:
        config: uvicorn's.
        operations: is told that the server drains, and knows which requests are being answered.
        registry: its compilations end when the server drains, and its threads what is not finished in time.
        limit: seconds in which requests may be finished.
        on_start: called once requests are taken.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        operations: Operations,
        registry: Registry,
        limit: float,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        config.timeout_graceful_shutdown = _TO_CLOSE
        super().__init__(config)
        self.failure: OSError | None = None
        """Why it could not listen."""
        self._operations, self._registry = operations, registry
        self._limit, self._on_start = limit, on_start
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen; what goes wrong then is kept as `failure`."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        except OSError as error:  # another process listens on the port since it was taken
            self.failure, self.should_exit = error, True
            await self.lifespan.shutdown()
        else:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, as the handler of a signal."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Refuse new requests, and close once those that run are finished. A second call ends them."""
        if self._draining is not None:
            self._registry.end()
            return
        self._operations.draining = True
        self._registry.stop_compiling()
        self._draining = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        try:
            async with asyncio.timeout(self._limit):
                await self._operations.idle()
        except TimeoutError:
            self._registry.refuse()
            self._registry.end()
        self.should_exit = True
