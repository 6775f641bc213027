"""What operators see and set of a running server: its numbers, its log, limits of time, keys that go, and its drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from lit_llm.serving.errors import ApiError
from lit_llm.serving.keys import Keys
from lit_llm.serving.metrics import Gauges, Metrics
from lit_llm.serving.prefix_numbers import prefix_gauges
from lit_llm.serving.protocol import ChatRequest, CompletionRequest
from lit_llm.serving.record import Record
from lit_llm.serving.registry import Registry
from lit_llm.serving.request_log import RequestLog
from lit_llm.serving.worker import Job, Text, Worker

_T = TypeVar("_T")
# Seconds between two looks at the file of keys.
_LOOK = 0.5


@dataclass(frozen=True)
class TimeLimits:
    """Seconds that a request may take, by the monotonic clock."""

    queue: float = 60.0
    """Until the first of its texts has a place."""
    request: float = 600.0
    """From its head to the end of its answer."""


class Operations:
    """The records of the requests of one server, and what ends them early. To be used in one event loop.

    Args:
        limits: of time.
        log: is told of each request; None: there is no log.
        keeps_texts: whether the log has texts.
    """

    def __init__(
        self, limits: TimeLimits | None = None, log: RequestLog | None = None, keeps_texts: bool = False
    ) -> None:
        self.limits, self.log, self.keeps_texts = limits or TimeLimits(), log, keeps_texts
        self.metrics: Metrics | None = None
        """None where the package for them is not installed."""
        self.active: set[Record] = set()
        """Requests that are being answered."""
        self.draining = False
        """Whether new requests are refused, because the server is going to end."""
        self._followed: set[Followed] = set()

    def count(self, registry: Registry) -> None:
        """Begin to count what a server does."""

        def gauges() -> Gauges:
            counts, ready = registry.counts(), registry.worker.status == "ok" and not self.draining
            return {
                "requests_in_flight": ("Requests that are being answered.", len(self.active)),
                "requests_preparing": ("Requests whose prompts and schemas are made ready.", counts["preparing"]),
                "requests_running": ("Requests whose texts are written.", counts["running"]),
                "requests_waiting": ("Requests that wait for a place.", counts["waiting"]),
                "models_loaded": ("Models in memory, without adapters.", len(registry.running)),
                "ready": ("1 where new requests are taken.", ready),
                **prefix_gauges(running.worker for running in registry.running),
            }

        with suppress(ModuleNotFoundError):
            first = registry.first
            self.metrics = Metrics(first.name, {"quantize": first.quantize or "none"}, gauges)
            registry.watch_steps(self.metrics.observe_batch)

    def over(self, record: Record) -> None:
        """Count and log a request that is over."""
        if self.metrics is not None:
            self.metrics.observe(record)
        if self.log is not None:
            self.log.write(record)

    @asynccontextmanager
    async def watching(self, keys: Keys | None) -> AsyncIterator[None]:
        """Look at the file of keys for the block, and end what a key that goes has begun."""

        async def look() -> None:
            while True:
                await asyncio.sleep(_LOOK)
                keys.refresh()

        if keys is None:
            yield
            return
        keys.on_change = lambda: self._end_of_keys(keys)
        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()

    def _end_of_keys(self, keys: Keys) -> None:
        for followed in [followed for followed in self._followed if not followed.may_go_on(keys)]:
            followed.fail(ApiError("the key of this request was withdrawn", 401, code="invalid_api_key"))

    async def in_time(self, record: Record, work: Awaitable[_T]) -> _T:
        """Return the result of some work, unless the request's time ends before.

        Raises:
            ApiError: it has ended.
        """
        try:
            async with asyncio.timeout(self.limits.request - record.seconds):
                return await work
        except TimeoutError:
            raise self._late() from None

    def take(self, record: Record, prompt_tokens: int, texts: Sequence[Text], context_length: int) -> None:
        """Take the tokens that a request may come to from what its key has left; what it does not use is given back.

        Args:
            record: of the request.
            prompt_tokens: tokens of all prompts, each counted once for all of its texts.
            texts: to be written, each until its limit or the end of the context.
            context_length: tokens that a prompt and its text have together, but for the last one, which is not read.

        Raises:
            ApiError: they are not there.
        """
        if record.account is not None:
            rooms = (context_length + 1 - len(text.prompt) for text in texts)
            limits = (text.sampling.max_new_tokens for text in texts)
            tokens = prompt_tokens + sum(map(min, limits, rooms))
            record.account.take_tokens(tokens)
            record.reserved = tokens

    def follow(
        self, worker: Worker, job: Job, record: Record, prompt_tokens: int, body: ChatRequest | CompletionRequest
    ) -> Followed:
        """Record what is written for a request, and end it where its time or its key ends."""
        asked = body.model_dump(include={"messages", "prompt"}, exclude_defaults=True) if self.keeps_texts else None
        record.asks(body.stream, prompt_tokens, len(job.texts), asked)
        job.notice = record.hear
        followed = Followed(worker, job, record, self._followed.discard)
        self._followed.add(followed)
        followed.after(self.limits.request - record.seconds, lambda: followed.fail(self._late()))
        followed.after(self.limits.queue, lambda: self._check_place(worker, followed))
        return followed

    def _check_place(self, worker: Worker, followed: Followed) -> None:
        if worker.waits(followed.job):
            message = f"there was no place for this request within {self.limits.queue:g} s; try again later"
            followed.fail(ApiError(message, 503, code="queue_timeout"))

    def _late(self) -> ApiError:
        message = f"the request was not answered within {self.limits.request:g} s; ask for less"
        return ApiError(message, 504, code="request_timeout")

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        while any(record.method == "POST" for record in self.active):
            await asyncio.sleep(0.02)

    def refusal(self) -> ApiError | None:
        """Return why no new texts are written, if so."""
        return ApiError("the server is ending; try again later", 503, code="draining") if self.draining else None


class Followed:
    """A job that may be ended early.

    Args:
        worker: writes it.
        job: the texts.
        record: that of its request.
        at_end: called when it is over.
    """

    def __init__(self, worker: Worker, job: Job, record: Record, at_end: Callable[[Followed], None]) -> None:
        self.job, self._worker, self._record, self._at_end = job, worker, record, at_end
        self._timers: list[asyncio.TimerHandle] = []

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call a function after some time, unless the job is over before."""
        self._timers.append(asyncio.get_running_loop().call_later(max(0.0, seconds), call))

    def may_go_on(self, keys: Keys) -> bool:
        """Whether the key by which it was begun still opens."""
        return self._record.key is None or keys.holds(self._record.key)

    def fail(self, error: ApiError) -> None:
        """End the job with an error, after what was written of it."""
        if self.job.unfinished:
            self._worker.fail(self.job, error)

    def end(self) -> None:
        """Stop what is left of the job. To be called when its request is over, and harmless a second time."""
        for timer in self._timers:
            timer.cancel()
        self._worker.cancel(self.job)
        self._at_end(self)
