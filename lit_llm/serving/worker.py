"""The thread that owns the engine: texts come to it by a queue, and what is written goes back to asyncio."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation import Engine, Event, PrefixCache, TextConstraint
from lit_llm.serving.errors import ApiError
from lit_llm.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Text:
    """A text that the engine is to write."""

    prompt: list[int]
    sampling: SamplingConfig
    stop_tokens: tuple[int, ...] = ()
    log_probs: int | None = None
    constraint: TextConstraint | None = None
    adapter: str | None = None
    """The adapter that it is written by; None: the model as it is."""
    tokenizer: Tokenizer | None = None
    """That of the adapter; None: the engine's."""


class Job:
    """The texts of one request, as asyncio sees them. To be made and used in one event loop.

    Args:
        texts: at least one.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = list(texts)
        self.unfinished = set(range(len(texts)))
        """Indices of the texts that are still being written."""
        self.notice: Callable[[tuple[int, Event] | ApiError], None] = lambda news: None
        """A function that is called with what is told of the texts when it comes, whether or not anybody listens."""
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[int, Event] | ApiError] = asyncio.Queue()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield each event with the index of its text, until all texts have ended.

        Raises:
            ApiError: the engine failed.
        """
        ended = 0
        while ended < len(self.texts):
            heard = await self._heard.get()
            if isinstance(heard, ApiError):
                raise heard
            ended += heard[1].finish_reason is not None
            yield heard

    def tell(self, news: tuple[int, Event] | ApiError) -> None:
        """Pass something on from any thread; where the loop is closed nobody listens any more."""
        try:
            self._loop.call_soon_threadsafe(self._hear, news)
        except RuntimeError:
            _LOG.debug("an event came after the end of its loop")

    def _hear(self, news: tuple[int, Event] | ApiError) -> None:
        self.notice(news)
        if isinstance(news, ApiError):
            self.unfinished.clear()
        elif news[1].finish_reason is not None:
            self.unfinished.discard(news[0])
        self._heard.put_nowait(news)


class Worker:
    """Writes texts on a thread of its own, with one engine.

    `submit`, `cancel` and `load` belong to the event loop; the engine is touched on the thread alone. A text that the
    engine cannot go on with ends its own request. A step that fails ends the requests that run, and a new engine goes
    on with those that wait.

    Args:
        make_engine: called on the thread, at the start and after a failure.
        max_batch: texts that the engine writes at once.
        max_waiting: requests that may wait while none of their texts has a place.
        warm_up: numbers of rows to write a token with before the start, for what an engine compiles.
        prefix_cache: that of the engines, whose numbers are told.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        max_batch: int,
        max_waiting: int,
        warm_up: Iterable[int] = (),
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.steps = 0
        """Number of steps of the engine so far."""
        self.failure: BaseException | None = None
        """The reason why the thread ended without being asked to, or None."""
        self.on_failure: Callable[[], None] = lambda: None
        """A function that is called on the thread when it ends so."""
        self.on_step: Callable[[int], None] = lambda texts: None
        """A function that is called on the thread with the number of texts of each step."""
        self.prefix_cache = prefix_cache
        """What the engines keep of texts that have ended, whose `counts` any thread may ask for; None: nothing."""
        self._make_engine, self._max_batch, self._max_waiting = make_engine, max_batch, max_waiting
        self._warm_up = tuple(warm_up)
        self._jobs: list[Job] = []
        self._calls = 0
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ready, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # the thread's own
        self._engine: Engine | None = None
        self._waiting: deque[tuple[Job, int]] = deque()
        self._running: dict[int, tuple[Job, int]] = {}

    def start(self) -> None:
        """Start the thread and wait until its engine is ready.

        Raises:
            UserError: as the engine's construction; any other exception of it comes through as well.
        """
        self._thread.start()
        self._ready.wait()
        if self.failure is not None:
            raise self.failure

    def end(self) -> None:
        """Ask the thread to end after the step that runs; what is not finished then fails."""
        self._commands.put(None)

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self.end()
        self._thread.join()

    @property
    def status(self) -> str:
        """Return a word that says whether texts can be written."""
        if self.failure is not None:
            return "failed"
        return "ending" if self._ended.is_set() or not self._thread.is_alive() else "ok"

    @property
    def max_batch(self) -> int:
        """Return how many texts are written at once."""
        return self._max_batch

    @property
    def most_requests(self) -> int:
        """Return how many requests may run or wait at most."""
        return self._max_batch + self._max_waiting

    def load(self) -> tuple[int, int]:
        """Return how many requests run and how many wait, which are those none of whose texts has a place yet."""
        self._jobs = [job for job in self._jobs if job.unfinished]
        running = texts = 0
        for job in self._jobs:
            running += texts < self._max_batch
            texts += len(job.unfinished)
        return running, len(self._jobs) - running

    def submit(self, texts: Sequence[Text]) -> Job:
        """Hand a request's texts to the thread.

        Raises:
            ApiError: too many requests wait (429), or the thread has ended (503).
        """
        _, waiting = self.load()
        full = sum(len(job.unfinished) for job in self._jobs) >= self._max_batch
        if full and waiting >= self._max_waiting:
            raise ApiError(f"{waiting} requests are waiting already; try again later", 429, code="too_many_requests")
        job = Job(texts)
        self._commands.put(partial(self._add, job))
        if self._ended.is_set():  # asked after the command is there: the thread sets it before it looks a last time
            raise _ended()
        self._jobs.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """End what is left of a request; nothing more is told of it."""
        if job.unfinished:
            job.unfinished.clear()
            self._commands.put(partial(self._drop, job))

    async def call(self, work: Callable[[Engine], _T]) -> _T:
        """Have the thread do some short work with the engine, between two of its steps.

        Raises:
            ApiError: too much such work waits already (429), or the thread has ended (503).
        """
        if self._calls >= self.most_requests:
            raise ApiError(
                f"{self._calls} requests are waiting already; try again later", 429, code="too_many_requests"
            )
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def tell(result: _T | None, error: Exception | None) -> None:
            if not done.done():  # nobody waits any more for what was cancelled
                done.set_exception(error) if error is not None else done.set_result(result)  # type: ignore[arg-type]

        def command() -> None:
            result, error = None, None
            try:
                if self._ended.is_set() or self._engine is None:
                    raise _ended()
                if not done.done():
                    result = work(self._engine)
            except Exception as failed:
                error = failed
            try:
                loop.call_soon_threadsafe(tell, result, error)
            except RuntimeError:
                _LOG.debug("some work was done after the end of its loop")

        self._commands.put(command)
        if self._ended.is_set():  # as in `submit`
            raise _ended()
        self._calls += 1
        try:
            return await done
        finally:
            self._calls -= 1

    def fail(self, job: Job, error: ApiError) -> None:
        """End what is left of a request with an error, which comes after what was written of it."""
        self.cancel(job)
        job._hear(error)

    def waits(self, job: Job) -> bool:
        """Whether none of a request's texts has a place yet."""
        running, _ = self.load()
        return job in self._jobs[running:]

    def _run(self) -> None:
        try:
            self._engine = self._make_engine()
            self._warm()
            self._ready.set()
            while self._follow_commands():
                self._admit()
                if self._running:
                    self._step()
        except BaseException as error:
            self.failure = error
        finally:
            self._ended.set()
            self._ready.set()
            self._fail_everything()
            self._engine = None
        if self.failure is not None:
            self.on_failure()

    def _warm(self) -> None:
        for rows in self._warm_up:
            for _ in range(rows):
                self._engine.submit([0], SamplingConfig(max_new_tokens=1, temperature=0.0))
            self._engine.run()

    def _follow_commands(self) -> bool:
        """Take in new requests, waiting for one if there is nothing to do; False when the thread is to end."""
        idle = not self._waiting and not self._running
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            idle = False

    def _add(self, job: Job) -> None:
        self._waiting.extend((job, place) for place in range(len(job.texts)))

    def _drop(self, job: Job) -> None:
        self._waiting = deque(text for text in self._waiting if text[0] is not job)
        for request in [request for request, (other, _) in self._running.items() if other is job]:
            del self._running[request]
            self._engine.cancel(request)

    def _admit(self) -> None:
        """Hand over as many texts as there are places: those that wait outlive an engine that fails."""
        while self._waiting and len(self._running) < self._max_batch:
            job, place = self._waiting.popleft()
            text = job.texts[place]
            try:
                request = self._engine.submit(
                    text.prompt,
                    text.sampling,
                    stop_tokens=text.stop_tokens,
                    log_probs=text.log_probs,
                    allowed_tokens=None if text.constraint is None else text.constraint.start(),
                    adapter=text.adapter,
                    tokenizer=text.tokenizer,
                )
            except UserError as error:
                self._drop(job)
                job.tell(ApiError(str(error)))
            else:
                self._running[request] = job, place

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception:
            _LOG.exception("the engine failed; what it was writing is lost, and it starts again")
        else:
            self.steps += 1
            self.on_step(len(self._running))
            for event in events:
                job, place = self._running.get(event.request, (None, 0))
                if job is None:  # of a request that another of its texts has ended
                    continue
                if event.error is not None:
                    self._fail(job, event.error)
                    continue
                if event.finish_reason is not None:
                    del self._running[event.request]
                job.tell((place, event))
            return
        failed = {job for job, _ in self._running.values()}
        self._running = {}
        self._waiting = deque(text for text in self._waiting if text[0] not in failed)
        for job in failed:
            job.tell(ApiError("the model failed while it wrote this text; the server's log has more", 500))
        self._engine.close()
        self._engine = None  # its cache goes before another is made
        self._engine = self._make_engine()

    def _fail(self, job: Job, error: Exception) -> None:
        """End a request one of whose texts cannot go on."""
        _LOG.error("a text could not be written to its end; the others go on", exc_info=error)
        self._drop(job)
        job.tell(ApiError(f"a text could not be written to its end: {error}", 500))

    def _fail_everything(self) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command()
        for job in {job for job, _ in (*self._waiting, *self._running.values())}:
            job.tell(_ended())


def _ended() -> ApiError:
    return ApiError("the server is ending; try again later", 503)
