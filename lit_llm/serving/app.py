"""The routes, on FastAPI."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from lit_llm.generation import Completion
from lit_llm.serving.errors import ApiError, error_of_validation
from lit_llm.serving.protocol import ChatRequest, CompletionRequest
from lit_llm.serving.responses import Answer, ChatAnswer, CompletionAnswer
from lit_llm.serving.served import Served
from lit_llm.serving.worker import Job, Text, Worker

MOST_BYTES = 16 * 2**20
"""Of a body."""
_CLIENT_IS_GONE = 499  # as nginx calls it; nobody reads it


def create_app(served: Served, worker: Worker, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        served: the model as requests see it.
        worker: has been started; it is stopped when the application ends.
        api_key: what requests to /v1 must bring; None: nothing.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.stop)

    # the pages that FastAPI has for its own description load scripts from the internet
    app = FastAPI(title="lit_llm", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, api_key=api_key)
    _answer_errors(app)
    _route_descriptions(app, served, worker)
    _route_texts(app, served, worker)
    return app


def _route_descriptions(app: FastAPI, served: Served, worker: Worker) -> None:
    """What asks nothing of the model."""

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """The chat page."""
        text = resources.files("lit_llm.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Cache-Control": "no-cache"})

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether texts can be written, and how many requests there are."""
        running, waiting = worker.load()
        alive = worker.failure is None
        content = {"status": "ok" if alive else "failed", "running": running, "waiting": waiting}
        return JSONResponse(content, status_code=200 if alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model."""
        return {"object": "list", "data": [served.description()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model, by its name."""
        served.check_name(name)
        return served.description()


def _route_texts(app: FastAPI, served: Served, worker: Worker) -> None:
    """What the model writes."""

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answers to a conversation."""
        return await _answered(ChatAnswer, served.texts_of_chat, body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Texts that go on from prompts."""
        return await _answered(CompletionAnswer, served.texts_of_completion, body, request)

    async def _answered(
        kind: type[Answer],
        texts_of: Callable[[Any], list[Text]],
        body: ChatRequest | CompletionRequest,
        request: Request,
    ) -> Response:
        served.check_name(body.model)
        texts = await asyncio.to_thread(texts_of, body)  # a long prompt or a schema takes a while
        prompt_tokens = sum(len(text.prompt) for text in texts[:: body.n])
        answer = kind(served.name, served.tokenizer, prompt_tokens, body.include_usage)
        job = worker.submit(texts)
        if body.stream:
            return EventStream(answer.stream(job), lambda: worker.cancel(job))
        try:
            completions = await _written(job, request)
        finally:
            worker.cancel(job)
        if completions is None:
            return Response(status_code=_CLIENT_IS_GONE)
        return JSONResponse(answer.whole(completions))


async def _written(job: Job, request: Request) -> list[Completion] | None:
    """The texts of a job once they are whole; None where the client went away before."""
    completions = [Completion() for _ in job.texts]

    async def write() -> None:
        async for place, event in job.events():
            completions[place].add(event)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    writing, watching = asyncio.create_task(write()), asyncio.create_task(gone())
    try:
        await asyncio.wait((writing, watching), return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            return None
        writing.result()
    finally:
        writing.cancel()
        watching.cancel()
    return completions


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
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()


class Gate:
    """Lets through requests that bring the key, with bodies of a known and bearable size.

    Args:
        app: what they are passed on to.
        api_key: None: no key is asked for.
    """

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._wanted = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with the reason."""
        error = self._refusal(scope["path"], scope["method"], scope["headers"]) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await _response(error)(scope, receive, send)

    def _refusal(self, path: str, method: str, headers: Sequence[tuple[bytes, bytes]]) -> ApiError | None:
        given = dict(headers)
        asked_for_key = self._wanted is not None and path.startswith("/v1")
        if asked_for_key and not secrets.compare_digest(given.get(b"authorization", b""), self._wanted):
            message = "this server needs its API key; send it with the header Authorization: Bearer KEY"
            return ApiError(message, 401, code="invalid_api_key")
        if method == "POST":
            length = given.get(b"content-length")
            if length is None:
                return ApiError("the request does not say how long its body is; send Content-Length", 411)
            if int(length) > MOST_BYTES:
                return ApiError(f"the body has {int(length)} bytes; at most {MOST_BYTES} are read", 413)
        return None


def _answer_errors(app: FastAPI) -> None:
    """Every error has OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _response(error_of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        return _response(ApiError(f"{request.method} {request.url.path}: {error.detail}", error.status_code))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return _response(ApiError("the server failed on this request; its log has more", 500))


def _response(error: ApiError) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
    return JSONResponse(error.body(), status_code=error.status, headers=headers.get(error.status))
