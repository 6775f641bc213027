"""Thousands of requests of every bad kind, as bytes on a connection: none crashes the server, fails it or stays."""

from __future__ import annotations

import gc
import json
import logging
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, save_tiny, serving, wait_until

Chance = random.Random
ROUTES = ("/v1/completions", "/v1/chat/completions")
LAST = b"Connection: close\r\n"
JUNK = ("\ud800", "\x00", "é" * 50, "𝄞", "\u202e", "b" * 5000, "<|im_end|>", "%s%n{}", "\r\nX: y", "../../etc/passwd")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Hasty with those who do not go on, and open to as many at once as come."""
    options = {"read_timeout": 0.3, "write_timeout": 0.3, "default_max_tokens": 2, "max_per_client": 1000}
    with serving(save_tiny(tmp_path_factory.mktemp("hostile")), max_batch=4, **options) as server:
        yield server


def post(body: bytes, path: str = ROUTES[0], head: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n"
    return lines.encode() + LAST + head + b"\r\n" + body


def good_body(chance: Chance) -> dict[str, object]:
    return {"model": "tiny", "prompt": "b", "max_tokens": 2, "stream": chance.random() < 0.5}


def bad_json(chance: Chance) -> bytes:
    body = bytearray(json.dumps(good_body(chance)).encode())
    for _ in range(chance.randint(1, 5)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    whole = bytes(body)
    more = [
        b"",
        b"null",
        b"[" * 5000,
        b'{"a":' * 900,
        b"\xff\xfe",
        b"NaN",
        json.dumps("b").encode("utf-16"),
        bytes(999),
    ]
    return post(chance.choice([whole, whole[: len(whole) // 2], b"\xef\xbb\xbf" + whole, *more]), chance.choice(ROUTES))


def wrong_types(chance: Chance) -> bytes:
    values = [None, True, -1, 2**70, 1e308, [], {}, [[]], {"a": None}, "", *JUNK, ["b"] * 200, {"type": "json_object"}]
    names = [
        "model",
        "prompt",
        "messages",
        "n",
        "stop",
        "seed",
        "top_p",
        "logit_bias",
        "response_format",
        "stream",
        "b",
    ]
    body = good_body(chance) | {chance.choice([*names, *JUNK]): chance.choice(values) for _ in range(2)}
    return post(json.dumps(body).encode(), chance.choice(ROUTES))


def bad_headers(chance: Chance) -> bytes:
    body = json.dumps(good_body(chance)).encode()
    heads = [
        b"X-Junk: " + b"b" * chance.choice([10_000, 70_000, 200_000]) + b"\r\n",
        b"".join(b"X-%d: b\r\n" % place for place in range(3000)),
        b"no colon here\r\n",
        b": empty\r\n",
        b"X-Null: a\x00b\r\n",
        b"X-Request-Id: " + bytes(chance.randrange(128, 256) for _ in range(20)) + b"\r\n",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Authorization: Bearer \xff\xfe\r\n",
        b"Origin: http://[\r\n",
        b"Host: \xe9\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Accept-Encoding: " + b"gzip," * 500 + b"\r\n",
    ]
    return post(body, chance.choice(ROUTES), chance.choice(heads))


def bad_lines(chance: Chance) -> bytes:
    targets = [
        "/%00",
        "/v1/models/%ff%fe",
        "/v1/models/" + "a" * 60_000,
        "//",
        "*",
        "http://evil.example/",
        "/é",
        "/a b",
    ]
    targets += ["/v1/models/%0d%0aX:%20y", "/metrics?" + "&" * 3000, "/v1/models/../../..", "/v1/models/😀"]
    methods = ["GET", "BREW", "POST", "get", "\x00", "G" * 500, "OPTIONS", "CONNECT", "DELETE", "HEAD"]
    version = chance.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/9.9", "", "http"])
    line = (
        f"{chance.choice(methods)} {chance.choice(targets)} {version}\r\nHost: localhost\r\n".encode() + LAST + b"\r\n"
    )
    return chance.choice(
        [line, bytes(chance.randrange(256) for _ in range(300)) + b"\r\n\r\n", b"\x16\x03\x01\x02\x00" * 20]
    )


def false_lengths(chance: Chance) -> bytes:
    body = json.dumps(good_body(chance)).encode()
    if chance.random() < 0.3:
        length = chance.choice([b"-1", b"abc", b"1e9", b"9" * 30, b"0x10", b" ", b"17179869184"])
        return post(body).replace(b"Content-Length: %d" % len(body), b"Content-Length: " + length)
    return post(body, length=max(0, len(body) + chance.choice([-9, -1, 50])))


def several_at_once(chance: Chance) -> bytes:
    posts = b"".join(chance.choice([bad_json, wrong_types])(chance) for _ in range(3))
    return posts.replace(LAST, b"") + b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + LAST + b"\r\n"


KINDS: tuple[Callable[[Chance], bytes], ...] = (
    bad_json,
    wrong_types,
    bad_headers,
    bad_lines,
    false_lengths,
    several_at_once,
)


def send(server: Server, number: int) -> list[int]:
    """Send one hostile request, whole, slowly or cut off, and return the statuses that come back."""
    chance = random.Random(number)
    said = KINDS[number % len(KINDS)](chance)
    manner = chance.choices(["whole", "cut off", "reset", "slow", "unread"], [6, 1, 1, 1, 1])[0]
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60) as connection:
        try:
            if manner == "slow":
                half = len(said) // 2
                connection.sendall(said[:half])
                connection.recv(1)  # an answer, or the end: the rest does not come
                return []
            connection.sendall(said[: len(said) // 2] if manner == "cut off" else said)
            if manner == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if manner in ("reset", "unread"):
                return []
            if manner == "cut off":
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):  # the server closes while there is more to read
            return []
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def resident_mib() -> float:
    """Memory of this process, in which the server is."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.parametrize("count", [240, pytest.param(5000, marks=pytest.mark.slow)])
def test_hostile_requests_leave_nothing(server: Server, count: int, caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("there is no /proc to read the memory from")
    expected = server.expected("text", "b", seed=1, max_new_tokens=9).text
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a warning for each that is no HTTP
    before = 0.0
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(16) as pool:
        for begin in range(0, count, 120):
            for found in pool.map(lambda number: send(server, number), range(begin, min(begin + 120, count))):
                statuses.update(found)
            assert server.ask("text", prompt="b", seed=1, max_tokens=9)["choices"][0]["text"] == expected
            if begin == 120 * (count // 600):  # a fifth of them were there: what is kept once is kept
                gc.collect()
                before = resident_mib()
    assert {status for status in statuses if status >= 500} == set(), statuses
    assert {200, 400, 404, 405, 408} <= statuses.keys() and sum(statuses.values()) > count / 2, statuses
    wait_until(lambda: not server.process._operations.active)
    idle = {"status": "ok", "preparing": 0, "running": 0, "waiting": 0, "compiling": 0}
    wait_until(lambda: server.client.get("/health").json() == idle)
    # the test's own client may keep a connection
    wait_until(
        lambda: len(server.process.server_state.connections) <= 1 and len(server.process.server_state.tasks) <= 1
    )
    gc.collect()
    assert resident_mib() - before < 64
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text
