"""Requests that are meant to harm: each gets its own answer, and those beside it what they asked for."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, save_tiny, serving, wait_until

from lit_llm.generation import Compilation, automata
from lit_llm.serving import preparation
from lit_llm.serving.errors import ApiError
from lit_llm.serving.protocol import ChatRequest
from lit_llm.serving.served_model import Served
from lit_llm.tokenizer import ChatFormat, Tokenizer

# never compiled within any limit: the states double with each place
ENDLESS = "(a|b)*a(a|b){{{}}}"
IDLE = {"status": "ok", "preparing": 0, "running": 0, "waiting": 0, "compiling": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(save_tiny(tmp_path_factory.mktemp("strangers")), max_batch=4, default_max_tokens=3) as server:
        yield server


def held_to(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def sent(server: Server, path: str, body: bytes) -> socket.socket:
    """A connection on which a request has been sent, and nothing read."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def health(server: Server) -> dict[str, Any]:
    return server.client.get("/health").json()


def test_schemas_that_never_end_stop_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at once, of which two compile; the server goes on, and all end when their clients leave."""
    pytest.importorskip("outlines_core", reason="the extra constrained is not installed")
    begun: list[Compilation] = []

    class Recorded(Compilation):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            begun.append(self)

    monkeypatch.setattr(preparation, "Compilation", Recorded)
    expected = server.expected("text", "b", seed=1, max_new_tokens=9).text
    bodies = [
        {"model": "tiny", "prompt": "b", **held_to({"type": "string", "pattern": ENDLESS.format(24 + place)})}
        for place in range(7)
    ]
    bodies.append(bodies[0])  # the same again is compiled once
    connections = [sent(server, "/v1/completions", json.dumps(body).encode()) for body in bodies]
    wait_until(lambda: (health(server)["preparing"], health(server)["compiling"]) == (8, 7))
    assert server.ask("text", prompt="b", seed=1, max_tokens=9)["choices"][0]["text"] == expected
    connections[0].close()
    wait_until(lambda: health(server)["preparing"] == 7)
    assert health(server)["compiling"] == 7  # another waits for the same one
    for connection in connections[1:]:
        connection.close()
    wait_until(lambda: health(server) == IDLE)
    assert len(begun) == 7 and all(compilation._cancelled for compilation in begun)
    body = server.ask("text", prompt="b", max_tokens=99, **held_to({"enum": ["b"]}))
    assert body["choices"][0]["text"] == '"b"'


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "pattern": ENDLESS.format(24)}, "more than 0.5 s to compile"),
        ({"type": "string", "maxLength": 300}, "more than 2000 states"),
        ({"type": "string", "maxLength": 10**12}, "cannot be followed"),
        ({"enum": ["b" * 70_000]}, "at most 65536 are compiled"),
        ({"$ref": "#"}, "cannot be followed"),
    ],
)
def test_schemas_beyond_the_limits_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, schema: Any, reason: str
) -> None:
    pytest.importorskip("outlines_core", reason="the extra constrained is not installed")
    limits = automata.Limits(seconds=0.5, states=2000)
    monkeypatch.setattr(automata, "Limits", lambda: limits)
    response = server.post("text", prompt="b", **held_to(schema))
    error = response.json()["error"]
    assert response.status_code == 400 and reason in error["message"] and error["param"] == "response_format"
    assert health(server) == IDLE


def test_more_schemas_than_can_wait_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("outlines_core", reason="the extra constrained is not installed")
    monkeypatch.setattr(preparation, "_MOST_COMING", 1)
    body = {"model": "tiny", "prompt": "b", **held_to({"type": "string", "pattern": ENDLESS.format(24)})}
    with sent(server, "/v1/completions", json.dumps(body).encode()):
        wait_until(lambda: health(server)["compiling"] == 1)
        refused = server.post("text", prompt="b", **held_to({"enum": ["c"]}))
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "too_many_requests"
    wait_until(lambda: health(server) == IDLE)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_prompts_are_refused_by_their_length_before_they_are_encoded(
    server: Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def ask(text: str) -> str:
        options = {"messages": [{"role": "user", "content": text}]} if kind == "chat" else {"prompt": text}
        response = server.post(kind, **options)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        return response.json()["error"]["message"]

    longest = len("assistant" if kind == "chat" else "<|endoftext|>")  # names are tokens in prompts, not in messages
    most = 160 * longest
    assert "tokens, and the context" in ask("b" * most)

    def encoded(*_: Any) -> None:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(Tokenizer, "encode", encoded)
    monkeypatch.setattr(ChatFormat, "render_prompt", encoded)
    reason = (
        f"has {most + 1} characters; the context of 160 tokens, of at most {longest} bytes each, has room for {most};"
    )
    assert reason in ask("b" * (most + 1))
    assert "has 10000000 characters" in ask("b" * 10_000_000)


def test_what_may_fit_is_counted_piece_by_piece(server: Server) -> None:
    """With long tokens and a long context, a text of short ones is refused after a few pieces."""
    served = Served("tiny", server.tokenizer, 271, 20_000, [server.tokenizer.eot_id])
    served._check_length(["assistant" * 20_000], "prompt")  # 20,000 tokens in 180,000 characters
    with pytest.raises(ApiError, match="more tokens than the context of 20000 has room for"):
        served._check_length(["b" * 9_000, "c" * 171_000], "prompt")
    with pytest.raises(ApiError, match="more tokens"):
        served._check_length(["b" * 20_200, "c" * 100], "prompt")
    marks = "<|im_end|>" * 15_000  # a token each, of ten letters
    served._check_length([marks], "prompt", special_tokens=True)
    with pytest.raises(ApiError, match="more tokens"):
        served._check_length([marks], "prompt")


def test_long_texts_are_encoded_without_the_lock_and_as_short_ones(server: Server) -> None:
    text = "def f(user): return 'assistant €'\n" * 1000
    assert len(text) > 32_768
    pieces = [piece + "\n" for piece in text.split("\n")[:-1]]
    assert server.tokenizer.encode(text) == server.tokenizer.encode(pieces[0]) * 1000


def test_more_messages_than_tokens_are_refused(server: Server) -> None:
    for count, reason in ((160, "160 messages are more than the context"), (9000, "messages has 9000 elements")):
        response = server.post("chat", messages=[{"role": "user", "content": ""}] * count)
        assert response.status_code == 400 and reason in response.json()["error"]["message"]


# JSON, as it is sent
LONG_DIGITS = "9" * 5000
EXTREMES = [
    *("null", "true", "-1", "0", "1", "1.5", "1e-45", "-1e-45", "1e38", "1e400", "NaN", "-Infinity"),
    *(str(2**63), str(-(2**63) - 1), LONG_DIGITS, '""', '"b"', '"\\ud800"', '"\\u0000"', f'"{"b" * 10_000}"'),
    *("[]", "[[]]", '["b"]', "[9223372036854775808]", "[" * 100_000, "[" * 500 + "]" * 500, "{}", '{"\\ud800": 1}'),
    *('{"1": 1e-45}', '{"1": 100, "01": -100}', f'{{"{LONG_DIGITS}": 1}}', '{"\\u0663": 1}'),
]
MORE = {
    "temperature": ["1e-37", "1e-30", "2"],
    "repetition_penalty": ["1e45", "1e-3", "1e3"],
    "top_p": ["1e-300"],
    "seed": [str(2**63 - 1), str(-(2**63))],
    "logit_bias": ['{"1": 100, "2": -100}'],
    "response_format": [
        '{"type": "json_schema", "json_schema": {"schema": ' + schema + "}}"
        for schema in ("{}", '{"type": "\\ud800"}', '{"a":' * 300 + "1" + "}" * 300)
    ],
}
TEXT_ALONE = ["prompt", "logprobs", "echo"]
NAMES = ["\\ud800", "\\n", "b" * 10_000, "tools"]


def bodies_of(kind: str) -> list[str]:
    basis = {"model": '"tiny"', "max_tokens": "2"}
    basis |= {"messages": '[{"role": "user", "content": "b"}]'} if kind == "chat" else {"prompt": '"b"'}
    bodies = []
    for name in [*ChatRequest.model_fields, *NAMES] if kind == "chat" else TEXT_ALONE:
        for value in EXTREMES + MORE.get(name, []):
            options = basis | {name: value}
            if name == "max_completion_tokens":
                del options["max_tokens"]
            if name == "top_logprobs":
                options["logprobs"] = "true"
            bodies.append("{" + ", ".join(f'"{key}": {given}' for key, given in options.items()) + "}")
    return bodies


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_no_value_of_an_option_fails_the_server_or_others(server: Server, kind: str) -> None:
    path = {"chat": "/v1/chat/completions", "text": "/v1/completions"}[kind]
    bodies = bodies_of(kind)

    def ask(body: str) -> int:
        response = server.client.post(path, content=body.encode(), headers={"Content-Type": "application/json"})
        if response.status_code != 200:
            error = response.json()["error"]
            assert error["message"] and "\n" not in error["message"] and len(error["message"]) <= 500
        return response.status_code

    expected = server.expected("text", "b", seed=1, max_new_tokens=9).text

    def neighbour(_: int) -> str:
        return server.ask("text", prompt="b", seed=1, max_tokens=9)["choices"][0]["text"]

    with ThreadPoolExecutor(4) as pool:
        beside = pool.map(neighbour, range(20))
        statuses = dict(zip(bodies, pool.map(ask, bodies), strict=True))
        assert set(beside) == {expected}
    assert {body[:200]: status for body, status in statuses.items() if status not in (200, 400, 404)} == {}
    assert {200, 400} <= set(statuses.values())
    assert health(server) == IDLE
