"""A stand-in for a judge behind OpenAI's interface, which answers by a known rule and fails when told to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = re.compile(r"<<<answer(?: [AB])? (\w+)>>>\n(.*?)\n<<<end \1>>>", re.DOTALL)

Rule = Callable[[list[str], list[dict[str, str]]], str]
"""From the answers that are shown, in order, and the messages, to a reply."""


def longer(answers: list[str], messages: list[dict[str, str]]) -> str:
    """The longer answer is better."""
    one, other = map(len, answers)
    return "Reasons. [[C]]" if one == other else f"Reasons. [[{'A' if one > other else 'B'}]]"


class JudgeServer(ThreadingHTTPServer):
    """Attributes:
    rule: what it replies.
    faults: what happens to the next requests: a status, (status, headers), "text", "list", "slow" or "reset".
    always: what happens to those after them; None: all is well.
    models: what it lists; None: it has no list.
    bodies: those of the requests that were answered.
    keys: the header Authorization of every request.
    times: when each request came.
    """

    daemon_threads = True

    def __init__(self, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule = rule
        self.faults: list[Any] = []
        self.always: Any = None
        self.models: list[str] | None = ["stand-in"]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a connection that was cut off is what a test wants."""


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_GET(self) -> None:
        if self.server.models is None:
            self._send(404, {"error": {"message": "there is no list"}})
            return
        self._send(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.keys.append(self.headers.get("Authorization"))
            server.times.append(time.monotonic())
            fault = server.faults.pop(0) if server.faults else server.always
        self._answer(body, fault)

    def _answer(self, body: dict[str, Any], fault: Any) -> None:
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
        elif fault == "slow":
            self.server.stopped.wait(20)
            self.close_connection = True
        elif fault in ("text", "list"):
            self._send(200, {"text": "<html>busy</html>", "list": []}[fault])
        elif fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            self._send(status, {"error": {"message": f"told to say {status}"}}, headers)
        else:
            self.server.bodies.append(body)
            answers = [text for _, text in ANSWERS.findall(body["messages"][0]["content"])]
            choice = {"message": {"role": "assistant", "content": self.server.rule(answers, body["messages"])}}
            self._send(200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 7}})

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def judging(rule: Rule = longer) -> Iterator[JudgeServer]:
    """A judge while the block runs."""
    server = JudgeServer(rule)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
