"""The chat page: its files, and what a browser is told that it may do with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_TYPES = {".html": "text/html", ".css": "text/css", ".mjs": "text/javascript"}
# Nothing but this server's own files runs, none but it is asked, and no text can be turned into HTML or a script.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes:
        content: Its bytes.
        type: Its media type.
        tag: Changes with its bytes.
    """

    content: bytes
    type: str
    tag: str


def page_files() -> dict[str, PageFile]:
    """Return the files of the page by name."""
    files = {}
    for file in resources.files("lit_llm.serving").joinpath("page").iterdir():
        if kind := _TYPES.get(PurePosixPath(file.name).suffix):
            content = file.read_bytes()
            files[file.name] = PageFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return files


def add_page(app: FastAPI) -> None:
    """Add the routes of the page, which is at the server's root; a browser that has a file is not sent it again."""
    files = page_files()

    def answer(name: str, request: Request) -> Response:
        file = files.get(name)
        if file is None:
            raise HTTPException(404, f"the chat page has no file {name!r}")
        headers = {**_HEADERS, "ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.type, headers=headers)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Return the chat page."""
        return answer("index.html", request)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        """Return a script or style of the page."""
        return answer(name, request)
