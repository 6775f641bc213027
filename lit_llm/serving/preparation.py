"""Preparing a request for the engine in the background, so that neither the event loop nor others wait for it."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from lit_llm.config import UserError
from lit_llm.generation import Compilation, Spellings, TextConstraint, json_object
from lit_llm.serving.errors import ApiError
from lit_llm.serving.protocol import ChatRequest, CompletionRequest
from lit_llm.serving.served_model import Served
from lit_llm.serving.worker import Text

_T, _R = TypeVar("_T"), TypeVar("_R")
# Each at once. A prompt is short enough for the context, or refused before it is encoded.
_ENCODERS = 2
_COMPILERS = 2
# Schemas that are compiled or wait for that; a burst of requests with the same one counts once.
_MOST_COMING = 16
# A compiled schema is kept for the requests after it; with its masks it may take some megabytes.
_KEPT_CONSTRAINTS = 16


class Preparation:
    """Makes texts of requests: encodes prompts on threads, and compiles schemas in processes.

    To be made and used in one event loop.

    Args:
        served: the model as requests see it.
        most: requests that may be prepared at a time.
    """

    def __init__(self, served: Served, most: int) -> None:
        self.requests = 0
        """Number of requests that are being prepared."""
        self._served, self._most = served, most
        self._encoders = ThreadPoolExecutor(_ENCODERS, "encoder")
        self._schemas = Schemas(served)

    @property
    def compiling(self) -> int:
        """Schemas that are compiled or wait for that."""
        return self._schemas.compiling

    async def texts(self, body: ChatRequest | CompletionRequest) -> list[Text]:
        """Return the texts that a request asks for. When the call is cancelled, the work that it has begun ends.

        Raises:
            ApiError: the request cannot be served as it is (400), too many are being prepared (429), or the server is
                ending (503).
        """
        texts_of = self._served.texts_of_chat if isinstance(body, ChatRequest) else self._served.texts_of_completion
        with self._counted():
            texts = await self._in_background(texts_of, body)
            stop_tokens = texts[0].stop_tokens
            if body.any_object:
                constraint = await self._in_background(self._schemas.any_object, stop_tokens)
            elif body.schema_format is not None:
                constraint = await self._schemas.constraint(_schema_of(body), stop_tokens)
            else:
                return texts
        return [replace(text, constraint=constraint) for text in texts]

    async def prompts(self, inputs: Sequence[str | list[int]]) -> list[list[int]]:
        """Return the tokens of texts that are to be read alone.

        Raises:
            ApiError: as `texts`.
        """
        with self._counted():
            return await self._in_background(self._served.ids_to_embed, inputs)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self.requests >= self._most:
            raise ApiError(f"{self.requests} requests are being prepared; try again later", 429, code=TOO_MANY)
        self.requests += 1
        try:
            yield
        except RuntimeError:  # the pool takes nothing any more
            raise ApiError("the server is ending; try again later", 503) from None
        finally:
            self.requests -= 1

    async def _in_background(self, function: Callable[[_T], _R], argument: _T) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._encoders, function, argument)

    def stop_compiling(self) -> None:
        """Refuse requests with schemas that are not compiled yet, while others go on."""
        self._schemas.close()

    def close(self) -> None:
        """Refuse new requests and end the running work, without waiting for it."""
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._schemas.close()


def _schema_of(body: ChatRequest | CompletionRequest) -> str:
    try:
        # not sorted: the order of properties is the order in which they are written
        return json.dumps(body.schema_format.json_schema.json_schema)
    except RecursionError:
        raise ApiError("the JSON schema is nested too deeply", param="response_format") from None


TOO_MANY = "too_many_requests"

_Key = tuple[str, tuple[int, ...]]


class _Coming:
    """A constraint that is being made, and how many requests wait for it."""

    def __init__(self, compilation: Compilation, made: asyncio.Future[TextConstraint]) -> None:
        self.compilation, self.made, self.waiting = compilation, made, 0


class Schemas:
    """Constraints to JSON schemas: a few are made at a time, and the last ones are kept.

    To be used in one event loop.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._pool = ThreadPoolExecutor(_COMPILERS, "compiler")  # each waits for a process
        self._kept: OrderedDict[_Key, TextConstraint] = OrderedDict()
        self._coming: dict[_Key, _Coming] = {}
        self._closed = False
        self._of_objects: dict[
            tuple[int, ...], TextConstraint
        ] = {}  # by the tokens that end texts, of which few differ

    @property
    def compiling(self) -> int:
        """Schemas that are compiled or wait for that."""
        return len(self._coming)

    async def constraint(self, schema: str, stop_tokens: tuple[int, ...]) -> TextConstraint:
        """Return the constraint of a schema. Its compilation is ended when no request waits for it any more.

        Raises:
            ApiError: the schema cannot be followed or takes too much (400), too many are compiled (429), or the server
                is ending (503).
        """
        key = schema, stop_tokens
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        coming = self._coming.get(key) or self._begin(key)
        coming.waiting += 1
        try:
            return await asyncio.shield(coming.made)
        except UserError as error:
            if self._closed:
                raise ApiError("the server is ending; try again later", 503) from None
            raise ApiError(str(error), param="response_format") from None
        finally:
            coming.waiting -= 1
            if not coming.waiting and not coming.made.done():
                self._coming.pop(key)
                coming.compilation.cancel()
                coming.made.cancel()

    def any_object(self, stop_tokens: tuple[int, ...]) -> TextConstraint:
        """Return the constraint to JSON objects of any kind, from any thread.

        Raises:
            ApiError: texts of the model's tokens cannot be held to it (400).
        """
        made = self._of_objects.get(stop_tokens)
        if made is None:
            try:
                made = TextConstraint(json_object(), self._spellings, stop_tokens)
            except UserError as error:
                raise ApiError(str(error), param="response_format") from None
            self._of_objects[stop_tokens] = made
        return made

    def close(self) -> None:
        """End the compilations that are running."""
        self._closed = True
        for coming in self._coming.values():
            coming.compilation.cancel()
        self._pool.shutdown(wait=False)

    @cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self._served.tokenizer, self._served.vocab_size)

    def _begin(self, key: _Key) -> _Coming:
        if len(self._coming) >= _MOST_COMING:
            message = f"{len(self._coming)} JSON schemas are being compiled already; try again later"
            raise ApiError(message, 429, param="response_format", code=TOO_MANY)
        schema, stop_tokens = key
        try:
            compilation = Compilation(schema, is_schema=True, usable=self._spellings.usable)
        except UserError as error:
            raise ApiError(str(error), param="response_format") from None

        def make() -> TextConstraint:
            return TextConstraint(compilation.run(), self._spellings, stop_tokens)

        made = asyncio.get_running_loop().run_in_executor(self._pool, make)
        coming = self._coming[key] = _Coming(compilation, made)
        made.add_done_callback(lambda _: self._end(key, coming))
        return coming

    def _end(self, key: _Key, coming: _Coming) -> None:
        if self._coming.get(key) is coming:
            del self._coming[key]
        if coming.made.cancelled() or coming.made.exception() is not None:
            return
        self._kept[key] = coming.made.result()
        if len(self._kept) > _KEPT_CONSTRAINTS:
            self._kept.popitem(last=False)
