"""The answers to requests that cannot be served."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "5"},
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60  # of what was given; lists and objects show a few elements
_LONGEST = 500
"""Most characters of a message."""


class ApiError(Exception):
    """An error with one readable message and the fields that OpenAI's clients look for.

    Args:
        message: what is wrong, with the name of the option.
        status: of the HTTP response.
        param: the option.
        code: a word for programs.
        retry_after: seconds after which the client may try again, where they are not as with every such status.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON object that the client is sent."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else _shown(self.param)
        return {"error": {"message": _shown(self.message), "type": kind, "param": param, "code": self.code}}


def response_of(error: ApiError) -> JSONResponse:
    """Return the HTTP response that reports an error."""
    headers = dict(_HEADERS.get(error.status, {}))
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _shown(text: str) -> str:
    """Return a text as one line of limited length; it may quote what was sent, which need not be valid Unicode."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def error_of_validation(errors: Sequence[dict[str, Any]]) -> ApiError:
    """Turn the first complaint of pydantic into an error that names the option and what was given.

    Args:
        errors: as `ValidationError.errors()` gives them, and FastAPI with "body" before the place.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(f"the body is not JSON ({first.get('ctx', {}).get('error', first['msg'])})")
    place = [part for part in first["loc"] if part != "body"]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if not param:
        lacks = first["type"] == "missing" or first["input"] is None
        return ApiError(f"the {'request has no body' if lacks else 'body is no JSON object'}; send a JSON object")
    if first["type"] == "missing":
        return ApiError(f"{param} is missing", param=param)
    given = _SHORT.repr(first["input"])
    return ApiError(f"{param} is {given}; {first['msg'].replace('Input should', 'it must')}", param=param)
