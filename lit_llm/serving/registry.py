"""The models that a server has by name: which are in memory, who uses them, and which has to make room."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lit_llm.config import UserError
from lit_llm.serving.errors import ApiError
from lit_llm.serving.preparation import Preparation
from lit_llm.serving.served_model import Served
from lit_llm.serving.worker import Worker

_LOG = logging.getLogger(__name__)


class FolderChanged(UserError):
    """A folder is not what it was when the server looked at it. The message is for clients, too, and has no path."""


@dataclass(frozen=True)
class ModelGroup:
    """A model and the adapters over it, as their folders were when the server looked; it need not be in memory."""

    name: str
    """What the model is called."""
    served: Mapping[str, Served]
    """The model and its adapters as requests see them, by name."""
    state: Any = None
    """What is equal for two looks exactly if the files were the same."""
    nbytes: int = 0
    """Memory that it takes, in bytes."""


@dataclass(eq=False)
class Running:
    """A group in memory, with the thread that writes its texts."""

    group: ModelGroup
    worker: Worker
    preparations: dict[str, Preparation] = field(init=False)
    """By name, what prepares the requests of the model and of each adapter."""
    users: int = 0
    """Requests that are being answered."""
    retired: bool = False
    """Whether a newer one has taken its place, so that it ends with its last request."""

    def __post_init__(self) -> None:
        most = self.worker.most_requests
        self.preparations = {name: Preparation(served, most) for name, served in self.group.served.items()}

    def refuse(self) -> None:
        """Prepare nothing any more."""
        for preparation in self.preparations.values():
            preparation.close()

    async def close(self) -> None:
        """End the thread; nobody uses the model any more."""
        self.refuse()
        await asyncio.to_thread(self.worker.stop)


class Use:
    """The use of a model by one request, from before its preparation to the end of its answer.

    Args:
        running: the group.
        name: of the model or adapter.
        at_end: called once, when the use ends.
    """

    def __init__(self, running: Running, name: str, at_end: Callable[[Running], None]) -> None:
        self.served, self.worker = running.group.served[name], running.worker
        self.preparation = running.preparations[name]
        self._running, self._at_end = running, at_end
        self._ended = False
        running.users += 1

    def release(self) -> None:
        """End the use; it may be called again."""
        if not self._ended:
            self._ended = True
            self._running.users -= 1
            self._at_end(self._running)


class Registry:
    """Finds the model of a request by its name, and loads it where it is not in memory.

    The first model is always in memory. Of the others as many are as `most` and `most_bytes` allow; the one that was
    asked least recently goes first, and none goes while it is used. To be used in one event loop.

    Args:
        groups: all models, the first one at least; names are all different.
        worker: the started thread of the first.
        load: puts a group into memory and starts its thread; called on a thread.
        look: looks at the folders of a group again, given its name; called on a thread.
        most: of the other models, how many are in memory at once.
        most_bytes: of the other models, how much memory they take together; None: any.
    """

    def __init__(
        self,
        groups: Sequence[ModelGroup],
        worker: Worker,
        load: Callable[[ModelGroup], Worker] | None = None,
        look: Callable[[str], ModelGroup] | None = None,
        *,
        most: int = 1,
        most_bytes: float | None = None,
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self._group_of = {name: group.name for group in groups for name in group.served}
        self._first = groups[0].name
        self._load_worker, self._look = load, look
        self._most, self._most_bytes = most, most_bytes
        self._on_step: Callable[[str, int], None] = lambda name, texts: None
        self._running: OrderedDict[str, Running] = OrderedDict({self._first: self._run(groups[0], worker)})
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[Running] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._closed = False

    @property
    def worker(self) -> Worker:
        """The thread of the first model, without which the server ends."""
        return self._running[self._first].worker

    @property
    def first(self) -> Served:
        """The first model, as requests see it."""
        return self._groups[self._first].served[self._first]

    @property
    def running(self) -> list[Running]:
        """Everything that is in memory."""
        return [*self._running.values(), *self._leaving]

    def counts(self) -> dict[str, int]:
        """Return how many requests are prepared, run and wait, and how many schemas are being compiled."""
        loads = [running.worker.load() for running in self.running]
        preparations = [each for running in self.running for each in running.preparations.values()]
        return {
            "preparing": sum(each.requests for each in preparations),
            "running": sum(running for running, _ in loads),
            "waiting": sum(waiting for _, waiting in loads),
            "compiling": sum(each.compiling for each in preparations),
        }

    def descriptions(self) -> list[dict[str, Any]]:
        """Return the entries of GET /v1/models, the first model's first."""
        return [self.description(name) for name in self._group_of]

    def description(self, name: str) -> dict[str, Any]:
        """Return the entry of a model.

        Raises:
            ApiError: there is none of this name (404).
        """
        group = self._group(name)
        return {**self._groups[group].served[name].description(), "loaded": group in self._running}

    async def use(self, name: str) -> Use:
        """Begin to use a model, once it is in memory.

        Raises:
            ApiError: there is no such model (404), it cannot be loaded, there is no room for it now, or the server is
                ending (503).
        """
        group = self._group(name)
        while not self._is_there(group):
            if self._closed:
                raise ApiError("the server is ending; try again later", 503)
            await asyncio.shield(self._coming.get(group) or self._begin(group))
        self._running.move_to_end(group)
        return Use(self._running[group], name, self._used)

    def watch_steps(self, on_step: Callable[[str, int], None]) -> None:
        """Have a function called with the name of a model and the number of texts of each of its steps, on its thread.

        The name is that of the group: the texts of adapters are in the steps of their base.
        """
        self._on_step = on_step
        for running in self.running:
            running.worker.on_step = partial(on_step, running.group.name)

    def stop_compiling(self) -> None:
        """Refuse requests with schemas that are not compiled yet, while others go on."""
        for running in self.running:
            for preparation in running.preparations.values():
                preparation.stop_compiling()

    def refuse(self) -> None:
        """Prepare and load nothing any more."""
        self._closed = True
        for running in self.running:
            running.refuse()

    def end(self) -> None:
        """Ask every thread to end after its step; what is not finished then fails."""
        for running in self.running:
            running.worker.end()

    async def close(self) -> None:
        """End everything, and wait until it has."""
        self.refuse()
        await asyncio.gather(*self._coming.values(), return_exceptions=True)
        await asyncio.gather(*(running.close() for running in self.running), *self._endings)

    async def reload(self) -> None:
        """Look at every folder again, and put what has changed in the place of what there was; the log says so.

        Requests that have begun are answered by the model that they began with. What cannot be read stays as it was:
        answered where it is in memory, and otherwise refused until it can be read.
        """
        async with self._reloading:
            for name in self._groups:
                await self._reload(name)

    def _group(self, name: str) -> str:
        if name not in self._group_of:
            names = ", ".join(map(repr, self._group_of))
            those = "the model is" if len(self._group_of) == 1 else "the models are"
            message = f"there is no model {name!r} here; {those} {names}"
            raise ApiError(message, 404, param="model", code="model_not_found")
        return self._group_of[name]

    def _is_there(self, group: str) -> bool:
        """Whether a group is in memory and writes; one whose thread has failed is taken away, to be loaded anew."""
        running = self._running.get(group)
        if running is None or group == self._first or running.worker.status == "ok":
            return running is not None
        self._retire(self._running.pop(group))
        return False

    def _begin(self, group: str) -> asyncio.Task[None]:
        leaving = self._make_room(group)
        task = self._coming[group] = asyncio.create_task(self._load(group, leaving))
        task.add_done_callback(lambda done: done.exception())  # those who waited may have gone
        return task

    def _make_room(self, name: str) -> list[Running]:
        """Take away what has to go for a group to come; it has still to be closed.

        Raises:
            ApiError: what is in memory is in use (503).
        """
        kept = [running for group, running in self._running.items() if group != self._first]
        size = self._groups[name].nbytes + sum(self._groups[group].nbytes for group in self._coming)

        def too_many() -> bool:
            taken = size + sum(running.group.nbytes for running in kept)
            over = self._most_bytes is not None and taken > self._most_bytes
            return len(kept) + len(self._coming) >= self._most or over

        leaving = []
        for running in [each for each in kept if each.users == 0]:
            if too_many():
                kept.remove(running)
                leaving.append(running)
        if too_many():
            used = ", ".join([*(running.group.name for running in kept), *self._coming])
            message = f"there is no room for {name} while these are in use: {used}; try again later"
            raise ApiError(message, 503, param="model", code="model_not_loaded")
        for running in leaving:
            del self._running[running.group.name]
        return leaving

    async def _load(self, name: str, leaving: list[Running]) -> None:
        try:
            while leaving:  # nothing may hold them any more when the next one takes their memory
                await leaving.pop().close()
            group = self._groups[name]
            worker = await self._start(group)
            self._running[name] = self._run(group, worker)
        except FolderChanged as error:
            raise ApiError(str(error), 503, param="model", code="model_not_loaded") from None
        except Exception as error:
            _LOG.error("%s cannot be loaded: %s", name, error, exc_info=not isinstance(error, UserError))
            message = f"{name} cannot be loaded now; the server's log says why"
            raise ApiError(message, 503, param="model", code="model_not_loaded") from None
        finally:
            del self._coming[name]

    def _run(self, group: ModelGroup, worker: Worker) -> Running:
        worker.on_step = partial(self._on_step, group.name)
        return Running(group, worker)

    async def _start(self, group: ModelGroup) -> Worker:
        if self._load_worker is None:
            raise UserError(f"nothing loads {group.name}")
        return await asyncio.to_thread(self._load_worker, group)

    async def _reload(self, name: str) -> None:
        if self._look is None:
            return
        before, worker = self._groups[name], None
        try:
            group = await asyncio.to_thread(self._look, name)
            if group.state == before.state:
                return
            if name in self._running:
                worker = await self._start(group)
        except (UserError, OSError) as error:
            if name in self._running:
                _LOG.error("%s stays as it was: %s", name, error)
            else:
                _LOG.error("%s is not in memory and cannot be read; requests for it are refused: %s", name, error)
            return
        self._groups[name] = group
        old = self._running.pop(name, None)
        if worker is not None:
            self._running[name] = self._run(group, worker)
            if name == self._first:
                self._running.move_to_end(name, last=False)
        if old is not None:
            self._retire(old)
        _LOG.warning("%s has been read anew", name)

    def _retire(self, running: Running) -> None:
        """End what nobody can ask for any more, once the last request has its answer."""
        running.retired = True
        self._leaving.add(running)
        if not running.users:
            ending = asyncio.create_task(self._end(running))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def _end(self, running: Running) -> None:
        await running.close()
        self._leaving.discard(running)

    def _used(self, running: Running) -> None:
        """Follow the end of a use."""
        if running.retired:
            self._retire(running)
        elif self._running.get(running.group.name) is running:
            self._running.move_to_end(running.group.name)
