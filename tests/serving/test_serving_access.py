"""Who may ask a server, from where, how many requests at once, and in which time they must come."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, held, save_tiny, serving

from lit_llm.cli.serve import KEY_VARIABLE, access_to
from lit_llm.config import ServeConfig, UserError

HOURS = 3600.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("access"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    options = {"api_key": "sesame", "allowed_hosts": ["Chat.example.org", "*.lab"], "max_per_client": 2}
    with serving(folder, max_batch=1, read_timeout=HOURS, **options) as server:
        yield server


def code_of(response: Any) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["code"] if response.status_code != 200 else None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "a.localhost",
        "127.0.0.1:9",
        "10.1.2.3",
        "[::1]:80",
        "chat.example.org",
        "gpu.lab:1",
    ],
)
def test_a_server_answers_to_its_names_and_to_addresses(server: Server, host: str) -> None:
    assert server.client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "lab", "[::1", "a b"]
)
def test_a_name_that_a_stranger_points_here_is_refused(server: Server, host: str) -> None:
    for path in ("/", "/health", "/v1/models"):
        response = server.client.get(path, headers={"Host": host, "Authorization": "Bearer sesame"})
        assert code_of(response) == (421, "unknown_host")
        assert "--allowed_hosts" in response.json()["error"]["message"]


def test_every_name_may_be_allowed(folder: Path) -> None:
    access = access_to(ServeConfig(str(folder), allowed_hosts=["*"]))
    assert "*" in access.hosts


def test_a_page_of_another_origin_is_refused(server: Server) -> None:
    def post(origin: str) -> Any:
        headers = {"Origin": origin, "Authorization": "Bearer sesame"}
        return server.client.post(
            "/v1/completions", headers=headers, json={"model": "tiny", "prompt": "b", "max_tokens": 1}
        )

    for origin in ("http://evil.example", "null", "https://localhost.evil.example"):
        assert post(origin).status_code == 403
    for origin in (server.url, "http://localhost:3000", "https://chat.example.org"):
        assert post(origin).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer sesam",
        "Bearer sesameXYZ",
        "Bearer sesame sesame",
        "Bearer other",
        "sesame",
        "Basic sesame",
        "Bearer SESAME",
    ],
)
def test_only_the_whole_key_opens(server: Server, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    refused = server.client.get("/v1/models", headers=headers)
    assert code_of(refused) == (401, "invalid_api_key")
    assert ("needs an API key" if not header else "is no API key of this server") in refused.text
    body = {"model": "tiny", "prompt": "b", "max_tokens": 1}
    assert code_of(server.client.post("/v1/completions", headers=headers, json=body)) == (401, "invalid_api_key")


def test_one_client_has_its_share(server: Server) -> None:
    headers = {"Authorization": "Bearer sesame"}
    body = {"model": "tiny", "prompt": "b", "max_tokens": 2}

    def post() -> Any:
        return server.client.post("/v1/completions", headers=headers, json=body)

    with ThreadPoolExecutor(2) as pool:
        with held(server.loaded.model):
            requests = [pool.submit(post) for _ in range(2)]
            server.wait_for(1, 1)
            refused = post()
            assert code_of(refused) == (429, "too_many_requests") and refused.headers["retry-after"] == "1"
            assert "2 requests of yours" in refused.json()["error"]["message"]
            assert server.client.get("/v1/models", headers=headers).status_code == 200
        assert [request.result().status_code for request in requests] == [200, 200]
    assert post().status_code == 200


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("whole", "rest", "status"),
    [
        (b"", b"", None),
        (b"", HEALTH, None),
        (HEALTH + b"\r\n", b"GET /he", None),
        (b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", "HTTP/1.1 408"),
    ],
)
def test_who_does_not_go_on_is_not_waited_for(hasty: Server, whole: bytes, rest: bytes, status: str | None) -> None:
    port = int(hasty.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        if whole:
            connection.sendall(whole)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(rest)
        answer = b""
        while part := connection.recv(65536):  # until the server closes the connection
            answer += part
    if status is not None:
        assert answer.decode().startswith(status)
    assert hasty.client.get("/health").status_code == 200


@pytest.fixture(scope="module")
def hasty(folder: Path) -> Iterator[Server]:
    with serving(folder, max_batch=1, read_timeout=0.2) as server:
        yield server


def test_a_long_answer_is_not_broken_off(hasty: Server) -> None:
    """The time is for what is read, not for what is written."""
    with held(hasty.loaded.model) as release:
        body = {"model": "tiny", "prompt": "b", "max_tokens": 2, "stream": True}
        with hasty.client.stream("POST", "/v1/completions", json=body) as response:
            assert hasty.client.get("/health").status_code == 200
            port = int(hasty.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:
                assert silent.recv(1) == b""  # the time has passed
            release()
            assert [*response.iter_lines()][-2] == "data: [DONE]"


def test_where_a_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (tmp_path / "key").write_text("from-file\n")
    (tmp_path / "empty").write_text("\n")

    def opens(key: str, **options: Any) -> bool:
        return access_to(ServeConfig("model", **options)).keys.find(f"Bearer {key}".encode()) is not None

    assert access_to(ServeConfig("model")).keys is None
    assert opens("k", api_key="k") and opens("from-file", api_key_file=str(tmp_path / "key"))
    monkeypatch.setenv(KEY_VARIABLE, "from-environment")
    assert opens("from-environment") and opens("k", api_key="k") and not opens("from-environment", api_key="k")
    assert opens("from-file", api_key_file=str(tmp_path / "key"))
    monkeypatch.setenv(KEY_VARIABLE, "")
    for options, message in (
        ({}, f"{KEY_VARIABLE} has no key"),
        ({"api_key_file": str(tmp_path / "empty")}, "empty has no key"),
        ({"api_key_file": str(tmp_path / "none")}, "none: the key cannot be read"),
        ({"api_key": "a\nb"}, "api_key has no key"),
        ({"api_key": "k", "api_key_file": "f"}, "cannot be had together"),
    ):
        with pytest.raises(UserError, match=message):
            access_to(ServeConfig("model", **options))


def test_a_client_has_all_places_and_half_of_the_queue_by_default() -> None:
    assert access_to(ServeConfig("model", max_batch=4, max_waiting=9)).most_at_once == 9
    assert access_to(ServeConfig("model", max_per_client=3)).most_at_once == 3
    assert json.dumps(sorted(access_to(ServeConfig("model", host="0.0.0.0")).hosts)).count("localhost") == 2
