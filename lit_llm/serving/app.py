"""The HTTP routes of the server, as a FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from lit_llm.generation import Completion
from lit_llm.serving.chat_page import add_page
from lit_llm.serving.embeddings import EmbeddingRequest, embeddings
from lit_llm.serving.errors import ApiError, error_of_validation, response_of
from lit_llm.serving.gate import Access, Gate
from lit_llm.serving.operations import Operations
from lit_llm.serving.protocol import ChatRequest, CompletionRequest
from lit_llm.serving.record import CLIENT_IS_GONE, Observer, Record
from lit_llm.serving.registry import Registry, Use
from lit_llm.serving.response_objects import ResponseAnswer, ResponseRequest
from lit_llm.serving.responses import Answer, ChatAnswer, CompletionAnswer
from lit_llm.serving.worker import Job
from lit_llm.tokenizer import Tokenizer

_T = TypeVar("_T")


def create_app(registry: Registry, access: Access | None = None, operations: Operations | None = None) -> FastAPI:
    """The application.

    Args:
        registry: the models; it is closed when the application ends.
        access: what is asked of requests; None: that they call the server localhost, or by an address.
        operations: records them, and ends some of them early.
    """
    access, operations = access or Access(), operations or Operations()
    operations.count(registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with operations.watching(access.keys):
            yield
        await registry.close()

    # the pages that FastAPI has for its own description load scripts from the internet
    app = FastAPI(title="lit_llm", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, access=access, closed=operations.refusal)
    app.add_middleware(Observer, sink=operations.over, active=operations.active, keeps_texts=operations.keeps_texts)
    _answer_errors(app)
    add_page(app)
    _route_descriptions(app, registry, operations)
    _route_texts(app, _Answering(registry, operations))
    return app


def _route_descriptions(app: FastAPI, registry: Registry, operations: Operations) -> None:
    """Add the routes that need no work of the model: the health and the list of models."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether texts can be written, how many requests there are, and how many schemas are being compiled."""
        status = registry.worker.status
        status = "draining" if operations.draining and status == "ok" else status
        content = {"status": status, **registry.counts()}
        return JSONResponse(content, status_code=200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the server's numbers in Prometheus's text format."""
        if operations.metrics is None:
            raise ApiError("metrics need the package prometheus_client: pip install 'lit-llm[serve]'", 404)
        text, media_type = operations.metrics.text()
        return Response(text, media_type=media_type)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Return the list of models."""
        return {"object": "list", "data": registry.descriptions()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Return a model's entry, given its name."""
        return registry.description(name)


def _route_texts(app: FastAPI, answering: _Answering) -> None:
    """Add the routes for which a model works."""

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Write answers to a conversation."""
        return await answering.with_texts(ChatAnswer, body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Write texts that continue prompts."""
        return await answering.with_texts(CompletionAnswer, body, request)

    @app.post("/v1/responses")
    async def respond(body: ResponseRequest, request: Request) -> Response:
        """Write an answer to a conversation, in OpenAI's newer form."""

        def answer(model: str, tokenizer: Tokenizer, prompt_tokens: int, *_: Any) -> ResponseAnswer:
            return ResponseAnswer(body, model, prompt_tokens)

        return await answering.with_texts(answer, body.as_chat(), request)

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        """Make a vector of each text."""
        return await answering.with_vectors(body, request)


class _Answering:
    """Answers requests with the models that they name.

    Args:
        registry: finds them.
        operations: records what is done, and ends some of it early.
    """

    def __init__(self, registry: Registry, operations: Operations) -> None:
        self._registry, self._operations = registry, operations

    async def with_texts(
        self,
        kind: Callable[[str, Tokenizer, int, bool, int], Answer | ResponseAnswer],
        body: ChatRequest | CompletionRequest,
        request: Request,
    ) -> Response:
        """Write the texts that a request asks for; `kind` makes the form of the answer."""
        return await self._with_model(body.model, request, partial(self._texts, kind, body, request))

    async def with_vectors(self, body: EmbeddingRequest, request: Request) -> Response:
        """Make the vectors that a request asks for."""
        return await self._with_model(body.model, request, partial(self._vectors, body, request))

    async def _with_model(
        self, name: str, request: Request, answer: Callable[[Use], Coroutine[Any, Any, Response]]
    ) -> Response:
        """Answer a request with a model; its use ends with the answer, which is a stream's last event."""
        record: Record = request.state.record
        use = await self._operations.in_time(record, _unless_gone(request, self._registry.use(name)))
        if use is None:
            return Response(status_code=CLIENT_IS_GONE)
        record.model = use.served.name
        streaming = False
        try:
            response = await answer(use)
            streaming = isinstance(response, EventStream)
            return response
        finally:
            if not streaming:
                use.release()

    async def _texts(
        self,
        kind: Callable[[str, Tokenizer, int, bool, int], Answer | ResponseAnswer],
        body: ChatRequest | CompletionRequest,
        request: Request,
        use: Use,
    ) -> Response:
        record, operations = request.state.record, self._operations
        texts = await operations.in_time(record, _unless_gone(request, use.preparation.texts(body)))
        if texts is None:
            return Response(status_code=CLIENT_IS_GONE)
        prompt_tokens = sum(len(text.prompt) for text in texts[:: body.n])
        operations.take(record, prompt_tokens, texts, use.served.context_length)
        answer = kind(use.served.name, use.served.tokenizer, prompt_tokens, body.include_usage, body.n)
        job = use.worker.submit(texts)
        followed = operations.follow(use.worker, job, record, prompt_tokens, body)

        def end() -> None:
            followed.end()
            use.release()

        if body.stream:
            return EventStream(answer.stream(job), end)
        try:
            completions = await _unless_gone(request, _written(job))
        finally:
            end()
        if completions is None:
            return Response(status_code=CLIENT_IS_GONE)
        return JSONResponse(answer.whole(completions))

    async def _vectors(self, body: EmbeddingRequest, request: Request, use: Use) -> Response:
        record, operations = request.state.record, self._operations

        def read(tokens: int) -> None:
            operations.take(record, tokens, (), use.served.context_length)
            record.asks(False, tokens, 0, body.model_dump(include={"input"}) if operations.keeps_texts else None)

        found = await operations.in_time(record, _unless_gone(request, embeddings(body, use, read)))
        return Response(status_code=CLIENT_IS_GONE) if found is None else JSONResponse(found)


async def _written(job: Job) -> list[Completion]:
    """Return the texts of a job once they are whole."""
    completions = [Completion() for _ in job.texts]
    async for place, event in job.events():
        completions[place].add(event)
    return completions


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Return the result of some work, or None if the client goes away first, which cancels the work."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


class EventStream(StreamingResponse):
    """A stream of server-sent events.

    Args:
        content: the events.
        at_end: called when the last one was sent, and when the client went away before.
    """

    def __init__(self, content: AsyncIterator[str], at_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream to the client."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()


def _answer_errors(app: FastAPI) -> None:
    """Make every error of the application an answer in OpenAI's form."""

    def answer(request: Request, error: ApiError) -> JSONResponse:
        record: Record = request.state.record
        record.code = error.code
        return response_of(error)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, error_of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, ApiError(f"{request.method} {request.url.path}: {error.detail}", error.status_code))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        response = answer(request, ApiError("the server failed on this request; its log has more", 500))
        response.headers["X-Request-Id"] = request.state.record.id  # this is sent by a layer around the observer
        return response
