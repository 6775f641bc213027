"""The HTTP routes of the server, as a FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from lit_llm.generation import Completion
from lit_llm.serving.chat_page import add_page
from lit_llm.serving.errors import ApiError, error_of_validation, response_of
from lit_llm.serving.gate import Access, Gate
from lit_llm.serving.operations import Operations
from lit_llm.serving.preparation import Preparation
from lit_llm.serving.protocol import ChatRequest, CompletionRequest
from lit_llm.serving.record import CLIENT_IS_GONE, Observer, Record
from lit_llm.serving.responses import Answer, ChatAnswer, CompletionAnswer
from lit_llm.serving.served_model import Served
from lit_llm.serving.worker import Job, Worker

_T = TypeVar("_T")


def create_app(
    served: Served, worker: Worker, access: Access | None = None, operations: Operations | None = None
) -> FastAPI:
    """The application; its `state.preparation` may be closed before it ends, and is closed then.

    Args:
        served: the model as requests see it.
        worker: has been started; it is stopped when the application ends.
        access: what is asked of requests; None: that they call the server localhost, or by an address.
        operations: records them, and ends some of them early.
    """
    preparation = Preparation(served, worker.most_requests)
    access, operations = access or Access(), operations or Operations()
    operations.count(served, worker, preparation)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with operations.watching(access.keys):
            yield
        preparation.close()
        await asyncio.to_thread(worker.stop)

    # the pages that FastAPI has for its own description load scripts from the internet
    app = FastAPI(title="lit_llm", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.preparation = preparation
    app.add_middleware(Gate, access=access, closed=operations.refusal)
    app.add_middleware(Observer, sink=operations.over, active=operations.active, keeps_texts=operations.keeps_texts)
    _answer_errors(app)
    add_page(app)
    _route_descriptions(app, served, worker, preparation, operations)
    _route_texts(app, served, worker, preparation, operations)
    return app


def _route_descriptions(
    app: FastAPI, served: Served, worker: Worker, preparation: Preparation, operations: Operations
) -> None:
    """Add the routes that need no work of the model: the health and the list of models."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether texts can be written, how many requests there are, and how many schemas are being compiled."""
        running, waiting = worker.load()
        counts = {"preparing": preparation.requests, "running": running, "waiting": waiting}
        status = "draining" if operations.draining and worker.status == "ok" else worker.status
        content = {"status": status, **counts, "compiling": preparation.compiling}
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
        """Return the list of models, which has the one that is served."""
        return {"object": "list", "data": [served.description()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Return the model's entry, given its name."""
        served.check_name(name)
        return served.description()


def _route_texts(
    app: FastAPI, served: Served, worker: Worker, preparation: Preparation, operations: Operations
) -> None:
    """Add the routes whose answers the model writes."""

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Write answers to a conversation."""
        return await _answered(ChatAnswer, body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Write texts that continue prompts."""
        return await _answered(CompletionAnswer, body, request)

    async def _answered(kind: type[Answer], body: ChatRequest | CompletionRequest, request: Request) -> Response:
        served.check_name(body.model)
        record: Record = request.state.record
        record.model = served.name
        texts = await operations.in_time(record, _unless_gone(request, preparation.texts(body)))
        if texts is None:
            return Response(status_code=CLIENT_IS_GONE)
        prompt_tokens = sum(len(text.prompt) for text in texts[:: body.n])
        operations.take(record, prompt_tokens, texts)
        answer = kind(served.name, served.tokenizer, prompt_tokens, body.include_usage, body.n)
        job = worker.submit(texts)
        followed = operations.follow(worker, job, record, prompt_tokens, body)
        if body.stream:
            return EventStream(answer.stream(job), followed.end)
        try:
            completions = await _unless_gone(request, _written(job))
        finally:
            followed.end()
        if completions is None:
            return Response(status_code=CLIENT_IS_GONE)
        return JSONResponse(answer.whole(completions))


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
