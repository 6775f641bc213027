"""The chat page with a scripted server behind it, for tests of what no tiny model does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from lit_llm.serving.chat_page import add_page

Script = Callable[[dict[str, Any]], str | Response]
"""What is answered to the body of a request."""


def entry(name: str, **more: Any) -> dict[str, Any]:
    """A model's entry in the list of models."""
    return {"id": name, "object": "model", "context_length": 2048, "chat": True, "quantize": None, **more}


def streamed(text: str, model: str) -> Response:
    """A whole stream of an answer."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": part}}], "model": model} for part in text.splitlines(True)]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "model": model})
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return Response(f"{events}data: [DONE]\n\n", media_type="text/event-stream")


@contextmanager
def serving_page(models: Sequence[dict[str, Any]] = (), script: Script | None = None) -> Iterator[str]:
    """Serve the page for the block; its address."""
    app = FastAPI()
    add_page(app)

    @app.get("/v1/models")
    async def listed() -> JSONResponse:
        return JSONResponse({"data": list(models)})

    @app.post("/v1/chat/completions")
    async def answered(request: Request) -> Response:
        body = await request.json()
        answer = "" if script is None else script(body)
        return streamed(answer, body["model"]) if isinstance(answer, str) else answer

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    limit = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < limit, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
