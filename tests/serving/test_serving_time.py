"""What ends early: requests that wait or take too long, clients that do not read, and the server, which drains."""

from __future__ import annotations

import errno
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import held, no_end, save_tiny, serving, wait_until

from lit_llm.cli.serve import access_to, bound_socket, make_registry, make_server, make_worker, operations_of
from lit_llm.cli.serve_models import ModelFolders
from lit_llm.config import ServeConfig
from lit_llm.serving.operations import TimeLimits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("time"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def error_of(response: Any) -> dict[str, Any]:
    """The error of an answer, or the one that ends a stream."""
    if response.status_code != 200:
        return response.json()["error"]
    return json.loads([line for line in response.text.splitlines() if line][-1].removeprefix("data: "))["error"]


def test_who_waits_too_long_is_told(folder: Path, pool: ThreadPoolExecutor) -> None:
    """One that has a place is not: it may take longer."""
    body = {"prompt": [70], "max_tokens": 3}
    with serving(folder, max_batch=1, queue_timeout=0.05) as server:
        with held(server.loaded.model):
            first = pool.submit(server.ask, "text", **body, logit_bias=no_end(server))
            server.wait_for(1, 0)
            late = server.post("text", **body)
            assert late.status_code == 503 and late.headers["retry-after"] == "5"
            assert error_of(late)["code"] == "queue_timeout" and "within 0.05 s" in error_of(late)["message"]
            stream = server.post("text", **body, stream=True)
            assert error_of(stream)["code"] == "queue_timeout"
            assert server.counts() == (1, 0)
        assert first.result()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_ended(folder: Path, stream: bool) -> None:
    with serving(folder, max_batch=1, request_timeout=1.0) as server:
        with held(server.loaded.model):
            late = server.post("text", prompt=[70], max_tokens=3, stream=stream)
            assert late.status_code == 504 or stream
            assert error_of(late)["code"] == "request_timeout" and "within 1 s" in error_of(late)["message"]
            server.wait_for(0, 0)  # its place is free
            server.process._operations.limits = TimeLimits()  # the next one may be slow
        server.ask("text", prompt=[70], max_tokens=3)


def test_a_client_that_never_reads_is_not_waited_for(folder: Path) -> None:
    """It asks for the page again and again; what it does not read fills its connection."""
    with serving(folder, write_timeout=0.1) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        ours = client.getsockname()

        def connected() -> bool:
            return any(connection.client == ours for connection in server.process.server_state.connections)

        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)  # some 16 MB, more than the kernel keeps
        wait_until(connected)
        wait_until(lambda: not connected())
        wait_until(lambda: not server.process._operations.active)
        assert server.client.get("/health").status_code == 200


def test_a_client_that_reads_slowly_gets_everything_and_stops_nobody(folder: Path) -> None:
    """It takes longer than a client may take that does not read at all."""
    patience, pages = 2.0, 500
    body = {"model": "tiny", "prompt": [70], "max_tokens": 40, "seed": 1, "stream": True}
    text = json.dumps(body).encode()
    last = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    last += b"Content-Length: %d\r\n\r\n%s" % (len(text), text)
    with serving(folder, write_timeout=patience) as server, socket.socket() as client:
        page = server.client.get("/").content
        expected = server.expected("text", [70], seed=1, max_new_tokens=40).text
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: identity\r\n\r\n" * pages + last)
        begun, read, asked = time.monotonic(), bytearray(), 0
        while part := client.recv(len(page)):
            read += part
            if len(read) > asked * len(page) * pages // 8:  # eight times on the way
                asked += 1
                assert server.ask("text", prompt=[70], seed=1, max_tokens=40)["choices"][0]["text"] == expected
            time.sleep(max(0.0, begun + 1.5 * patience * len(read) / (len(page) * pages) - time.monotonic()))
        assert time.monotonic() - begun > 1.2 * patience
    assert read.count(page) == pages
    stream = read[read.rindex(page) + len(page) :].decode()
    chunks = re.findall(r"^data: (\{.*\})", stream, re.MULTILINE)
    assert "".join(json.loads(each)["choices"][0]["text"] for each in chunks) == expected and "[DONE]" in stream


def test_a_drain_loses_nothing(folder: Path, pool: ThreadPoolExecutor) -> None:
    body = {"prompt": [70], "max_tokens": 8, "seed": 1}
    with serving(folder, max_batch=1) as server:
        expected = server.expected("text", [70], seed=1, max_new_tokens=8).text
        with held(server.loaded.model) as release:
            running = pool.submit(server.ask, "text", **body)
            server.wait_for(1, 0)
            waiting = [pool.submit(server.post, "text", **body, stream=stream) for stream in (True, False)]
            server.wait_for(1, 2)
            server.process.handle_exit(signal.SIGTERM, None)
            wait_until(lambda: server.client.get("/health").status_code == 503)
            assert server.client.get("/health").json() == {
                "status": "draining",
                "preparing": 0,
                "running": 1,
                "waiting": 2,
                "compiling": 0,
            }
            refused = server.post("text", **body)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
            assert error_of(refused)["code"] == "draining"
            assert server.client.get("/v1/models").status_code == 200
            assert not server.process.should_exit
            release()
            assert running.result()["choices"][0]["text"] == expected
            stream, whole = [request.result() for request in waiting]
        assert whole.json()["choices"][0]["text"] == expected
        events = [line.removeprefix("data: ") for line in stream.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == expected
        wait_until(lambda: server.process.should_exit and not server.worker._thread.is_alive())


@pytest.mark.parametrize("again", [False, True])
def test_a_drain_has_an_end(folder: Path, pool: ThreadPoolExecutor, again: bool) -> None:
    """After its limit, or at a second signal."""
    with serving(folder, max_batch=1, drain_timeout=3600 if again else 0.05) as server:
        with held(server.loaded.model):
            running = pool.submit(server.post, "text", prompt=[70], max_tokens=100)
            server.wait_for(1, 0)
            for _ in range(1 + again):
                server.process.handle_exit(signal.SIGTERM, None)
            wait_until(lambda: not server.worker._commands.empty())  # the thread is asked to end
        assert running.result().status_code == 503 and "the server is ending" in error_of(running.result())["message"]
        wait_until(lambda: server.process.should_exit)


def test_a_port_that_was_taken_since_is_named(folder: Path) -> None:
    """Two may take a port that nobody listens on yet; the second is told when it begins to listen."""
    config = ServeConfig(str(folder), port=0)
    models = ModelFolders(config, make_worker)
    registry = make_registry(config, models, [models.look("tiny")])
    with bound_socket("127.0.0.1", 0) as first, bound_socket("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        server = make_server(config, registry, models, access_to(config), operations_of(config))
        server.run(sockets=[second])
    assert server.failure is not None and server.failure.errno == errno.EADDRINUSE
    assert registry.worker.status == "ending"
