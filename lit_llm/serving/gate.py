"""The checks of every request: its key, its host, how many come at once, and how long it takes to arrive."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_llm.serving.errors import ApiError, response_of
from lit_llm.serving.keys import Key, Keys
from lit_llm.serving.record import record_of

MOST_BYTES = 16 * 2**20
"""Most bytes of a request's body."""
MOST_BRACKETS = 2**19
"""Most opening brackets in a body: each may begin a list or object, and a million of them take seconds to read."""


@dataclass(frozen=True)
class Access:
    """The conditions that requests must meet."""

    keys: Keys | None = None
    """The keys of which requests to /v1 must bring one; None where they need none."""
    hosts: frozenset[str] = frozenset(["localhost"])
    """Host names by which the server may be called, besides IP addresses; * stands for any part of a name."""
    most_at_once: int | None = None
    """Most requests of one client's address at a time; None allows any number."""
    read_timeout: float = 30.0
    """Seconds in which a body must have come."""

    @classmethod
    def to(cls, host: str, names: Iterable[str] = (), **options: object) -> Access:
        """Make the conditions of a server that listens on `host` and may be called by `names` as well."""
        own = ("localhost", "*.localhost", host, socket.gethostname(), *names)
        return cls(hosts=frozenset(name.lower().rstrip(".") for name in own), **options)


class Gate:
    """A layer around the application that passes on a permitted request once all of it has arrived.

    A page of a stranger can have a name that points to this machine (DNS rebinding), and so ask a server here as if it
    were its own: the browser then sends that name as the host. An address cannot be made to point elsewhere.

    Args:
        app: what they are passed on to.
        access: what is asked of them.
        closed: returns why new requests for texts are refused, if they are.
    """

    def __init__(self, app: ASGIApp, access: Access, closed: Callable[[], ApiError | None] = lambda: None) -> None:
        self._app, self._access, self._closed = app, access, closed
        self._at_once: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with the reason."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
        else:
            await self._pass_counted(scope, receive, send)

    async def _pass_counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = (scope.get("client") or ("",))[0]
        most = self._access.most_at_once
        if most is not None and self._at_once[client] >= most:
            message = f"{most} requests of yours are being answered already; send fewer at once"
            await _refuse(ApiError(message, 429, code="too_many_requests"), scope, receive, send)
            return
        self._at_once[client] += 1
        try:
            await self._pass_whole(scope, receive, send)
        finally:
            self._at_once[client] -= 1
            if not self._at_once[client]:
                del self._at_once[client]

    async def _pass_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, unless that does not come in time."""
        try:
            async with asyncio.timeout(self._access.read_timeout):
                body = await _whole_body(receive)
        except TimeoutError:
            message = f"the body did not come within {self._access.read_timeout:g} s"
            await _refuse(ApiError(message, 408), scope, receive, send)
            return
        brackets = 0 if body is None else body.count(b"[") + body.count(b"{")
        if brackets > MOST_BRACKETS:
            message = (
                f"the body has {brackets} opening brackets; at most {MOST_BRACKETS} are read: send several requests"
            )
            await _refuse(ApiError(message), scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        if body is not None:
            await self._app(scope, replay, send)

    def _check(self, scope: Scope) -> None:
        """Raise an ApiError if a request is not permitted."""
        posted, given = scope["method"] == "POST", dict(scope["headers"])
        host = given.get(b"host", b"").decode("latin-1")
        if not self._is_ours(f"//{host}"):
            message = f"this server is not called {host!r}; start it with --allowed_hosts to have it answer to that"
            raise ApiError(message, 421, code="unknown_host")
        origin = given.get(b"origin")
        if origin is not None and posted and not self._is_ours(origin.decode("latin-1")):
            raise ApiError("pages of other origins may not ask this server; see --allowed_hosts", 403)
        if self._access.keys is not None and scope["path"].startswith("/v1"):
            self._check_key(self._access.keys, given.get(b"authorization", b""), scope, posted)
        if not posted:
            return
        closed = self._closed()
        if closed is not None:
            raise closed
        length = given.get(b"content-length")
        if length is None:
            raise ApiError("the request does not say how long its body is; send Content-Length", 411)
        if int(length) > MOST_BYTES:
            raise ApiError(f"the body has {int(length)} bytes; at most {MOST_BYTES} are read", 413)

    @staticmethod
    def _check_key(keys: Keys, authorization: bytes, scope: Scope, counts: bool) -> None:
        """Raise an ApiError where a request has no key that opens, or too many requests came with it."""
        keys.refresh()
        key: Key | None = keys.find(authorization)
        if key is None:
            what = "this is no API key of this server" if authorization else "this server needs an API key"
            message = f"{what}; send one with the header Authorization: Bearer KEY"
            raise ApiError(message, 401, code="invalid_api_key")
        account, record = keys.account(key), record_of(scope)
        if record is not None:
            record.key, record.account = key, account
        if counts:
            account.take_request()

    def _is_ours(self, url: str) -> bool:
        """Whether the host of a URL is this server's, which it is where there is none (HTTP/1.0)."""
        if url == "//":
            return True
        try:
            name = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:  # half of an address's brackets
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return any(fnmatchcase(name, pattern) for pattern in self._access.hosts)
        return True


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    record = record_of(scope)
    if record is not None:
        record.code = error.code
    await response_of(error)(scope, receive, send)


async def _whole_body(receive: Receive) -> bytes | None:
    """Return the body, or None if the client goes away before it has sent all of it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
