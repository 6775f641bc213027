"""The process of the program: runs it, and then calls its functions as it is told."""

from __future__ import annotations

import json
import os
import sys
import traceback
import types
from contextlib import suppress
from typing import Any, BinaryIO

from . import wire

MOST_BYTES = 1 << 23
"""A message from or to a program is no longer than this."""
_NAME = "program"
_MOST_TEXT = 300


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer each request, a line of JSON, until there are no more.

    `program` runs a source; `call` calls one of its functions with `arguments` and `named`; `test` runs a source among
    what the program defined, and answers with the `token` that came with it.
    """
    module = types.ModuleType(_NAME)
    sys.modules[_NAME] = module
    # the program's own globals, and bound methods that it finds no name for; it can still do in this process what it
    # likes, which is why nothing that it does here decides about its tests
    answer, namespace, line = _answer, vars(module), requests.readline
    while text := line():
        reply = answer(json.loads(text), namespace)
        replies.write(reply)
        replies.flush()
    os._exit(0)


def _answer(request: dict[str, Any], namespace: dict[str, Any]) -> bytes:
    """The line of JSON that answers a request."""
    try:
        value = _carry_out(request, namespace)
        reply = json.dumps({"value": wire.pack(value)}).encode() + b"\n"
        if len(reply) > MOST_BYTES:
            raise OverflowError(f"an answer of {len(reply)} bytes; at most {MOST_BYTES}")
    except BaseException as error:
        if not isinstance(error, MemoryError | RecursionError):
            traceback.print_exc()
        reply = json.dumps({"raised": [type(error).__name__[:60], _text(error)]}).encode() + b"\n"
    with suppress(BaseException):
        sys.stdout.flush()
    return reply


def _carry_out(request: dict[str, Any], namespace: dict[str, Any]) -> Any:
    if "program" in request:
        exec(compile(request["program"], f"<{_NAME}>", "exec"), namespace)
        return None
    if "test" in request:
        exec(compile(request["test"], "<test>", "exec"), namespace)
        return request["token"]
    function = namespace[request["call"]] if request["call"] in namespace else _missing(request["call"])
    return function(*wire.unpack(request["arguments"]), **wire.unpack(request["named"]))


def _missing(name: str) -> Any:
    raise NameError(f"the program defines no {name}")


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_MOST_TEXT]
    except BaseException:
        return ""
