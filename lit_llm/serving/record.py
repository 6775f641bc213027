"""What is known of each request: filled while it is answered, then read by the metrics and the log."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_llm.generation import Event
from lit_llm.serving.errors import ApiError

if TYPE_CHECKING:
    from lit_llm.serving.keys import Account, Key

OTHER = "other"
"""The route of requests that none of ours answers, so that strangers cannot make names of routes."""
CLIENT_IS_GONE = 499
"""The status of a request whose client left before it was answered, as nginx calls it; nobody is sent it."""
# What a client or a proxy may call its request: as it is repeated in headers and logs, short and of plain letters.
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass
class Written:
    """What was written of one text, with times on the monotonic clock."""

    tokens: int = 0
    first: float = 0.0
    last: float = 0.0
    finish_reason: str | None = None
    text: list[str] = field(default_factory=list)

    @property
    def seconds_per_token(self) -> float | None:
        """The mean time from one token to the next; None where there is no second one."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(eq=False)
class Record:
    """One request. Durations are taken from the monotonic clock: `at` is for people alone."""

    id: str
    method: str
    keeps_texts: bool = False
    """Whether the texts that are asked and written are kept."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    route: str = OTHER
    status: int = 0
    code: str | None = None
    """The word for programs of the error that it was answered with."""
    model: str = ""
    key: Key | None = None
    account: Account | None = None
    """That of its key."""
    stream: bool = False
    prompt_tokens: int = 0
    reserved: int = 0
    """Tokens that its key was charged before they were written."""
    asked: Any = None
    written: list[Written] = field(default_factory=list)

    def asks(self, stream: bool, prompt_tokens: int, texts: int, asked: Any) -> None:
        """Note what is going to be written."""
        self.stream, self.prompt_tokens, self.asked = stream, prompt_tokens, asked
        self.written = [Written() for _ in range(texts)]

    def hear(self, news: tuple[int, Event] | ApiError) -> None:
        """Note an event of one of its texts, or the error that ends them."""
        if isinstance(news, ApiError):
            self.code = news.code or "failed"
            return
        place, event = news
        written = self.written[place]
        if event.token is not None:
            written.last = time.monotonic()
            written.first = written.first or written.last
            written.tokens += 1
        if event.finish_reason is not None:
            written.finish_reason = event.finish_reason
        if self.keeps_texts:
            written.text.append(event.text)

    def settle(self) -> None:
        """Give back to its key what was taken for it and not used. A second call does nothing."""
        if self.account is not None:
            self.account.settle(self.reserved, self.prompt_tokens + self.completion_tokens)
            self.reserved = 0

    @property
    def seconds(self) -> float:
        """How long it took, from its head to the end of its answer."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    @property
    def completion_tokens(self) -> int:
        """Tokens that were written for it."""
        return sum(written.tokens for written in self.written)

    @property
    def seconds_to_first_token(self) -> float | None:
        """From its head to the first token of any of its texts."""
        firsts = [written.first for written in self.written if written.tokens]
        return min(firsts) - self.began if firsts else None


class Observer:
    """The outermost layer around the application: it records requests, and gives each an id and its headers.

    Args:
        app: what requests are passed on to.
        sink: is told of each request when it is over.
        active: holds the records of requests that are being answered.
        keeps_texts: whether records keep texts.
    """

    def __init__(self, app: ASGIApp, sink: Callable[[Record], None], active: set[Record], keeps_texts: bool) -> None:
        self._app, self._sink, self._active, self._keeps_texts = app, sink, active, keeps_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and tell of it afterwards."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(scope), scope["method"], self._keeps_texts)
        scope.setdefault("state", {})["record"] = record
        self._active.add(record)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = record.id
                if not record.stream:  # everything is written, and the headers say what is left after it
                    record.settle()
                if record.account is not None:
                    headers.update(record.account.headers())
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            record.status = record.status or 500
            raise
        finally:
            record.ended = time.monotonic()
            record.status = record.status or CLIENT_IS_GONE
            record.route = _route(scope)
            self._active.discard(record)
            record.settle()
            self._sink(record)


def _route(scope: Scope) -> str:
    """Return the template of the path, also where the request was refused before it was routed."""
    if "route" in scope:
        return scope["route"].path
    routes = scope["app"].routes if "app" in scope else []
    return next((route.path for route in routes if route.matches(scope)[0] != Match.NONE), OTHER)


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex


def record_of(scope: Scope) -> Record | None:
    """Return the record of a request, or None in an application without an observer."""
    return scope.get("state", {}).get("record")
