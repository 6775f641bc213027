"""What a server refuses, with which words, and what it says of itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from foreign_tokenizers import CHAT_TEMPLATE, gpt2
from serving_models import CONTEXT, Server, describe, save_tiny, serving

from lit_llm.config import ServeConfig
from lit_llm.serving.chat_page import page_files
from lit_llm.serving.protocol import ChatMessage, ChatRequest, CompletionRequest
from lit_llm.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "b"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(save_tiny(tmp_path_factory.mktemp("served")), default_max_tokens=7) as server:
        yield server


def refusal(response: Any, status: int = 400) -> dict[str, Any]:
    """The error, which must have OpenAI's form and one line."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


CHAT_ERRORS = [
    ({"temperature": 99}, "temperature", "temperature is 99; it must be less than or equal to 2"),
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": "hot"}, "temperature", "temperature is 'hot'; it must be a valid number"),
    ({"temperature": True}, "temperature", "temperature is True"),
    ({"top_p": 0}, "top_p", "top_p is 0"),
    ({"top_k": 0}, "top_k", "top_k is 0"),
    ({"min_p": 2}, "min_p", "min_p is 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty is 0"),
    ({"repetition_penalty": 1e-45}, "repetition_penalty", "repetition_penalty is 1e-45; it must be from 0.001 to"),
    ({"presence_penalty": 3}, "presence_penalty", "presence_penalty is 3"),
    ({"frequency_penalty": -3}, "frequency_penalty", "frequency_penalty is -3"),
    ({"n": 0}, "n", "n is 0; it must be greater than or equal to 1"),
    ({"n": 1.5}, "n", "n is 1.5; it must be a valid integer"),
    ({"n": 1000}, "n", "n is 1000"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "give one of them"),
    ({"seed": 2**63}, "seed", "seed is 9223372036854775808"),
    ({"seed": "1"}, "seed", "seed is '1'"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "its keys must be token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "logit_bias.1 is 101"),
    ({"logit_bias": {"5000": 1}}, "logit_bias", "the token id 5000, which is not in the vocabulary of 271"),
    ({"stop": ["a"] * 5}, "stop", "a list of up to 4"),
    ({"stop": ""}, "stop", "none of them empty"),
    ({"stop": 5}, "stop", "stop must be a text"),
    ({"stream": "yes"}, "stream", "stream is 'yes'"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream to be true"),
    ({"stream": True, "stream_options": {"usage": True}}, "usage", "there is no option usage here"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs to be true"),
    ({"logprobs": True, "top_logprobs": 50}, "top_logprobs", "top_logprobs is 50"),
    ({"logprobs": 3}, "logprobs", "logprobs is 3; it must be a valid boolean"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "it must be 'text', 'json_object' or 'json_schema'"),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format", "no json_schema"),
    ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format", "type text takes no"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "needs a json_schema"),
    ({"store": True}, "store", "store is True"),
    ({"tools": []}, "tools", "tools is not supported by this server"),
    ({"audio": {}}, "audio", "audio is not supported"),
    ({"temprature": 1}, "temprature", "there is no option temprature here; the nearest is temperature"),
    ({"prompt": "b"}, "prompt", "there is no option prompt here"),
    ({"messages": []}, "messages", "messages is []"),
    ({"messages": "b"}, "messages", "messages is 'b'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
    ({"messages": [{"role": "king", "content": "b"}]}, "messages[0].role", "messages[0].role is 'king'"),
    ({"messages": [{"role": "user", "content": "b", "tool_calls": [1]}]}, "messages[0].tool_calls", "tool_calls"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "content must be text"),
]
TEXT_ERRORS = [
    ({"prompt": []}, "prompt", "prompt must be a text"),
    ({"prompt": [[]]}, "prompt", "prompt must be a text"),
    ({"prompt": [1, "b"]}, "prompt", "prompt must be a text"),
    ({"prompt": [5000]}, "prompt", "the token id 5000, which is not in the vocabulary of 271"),
    ({"prompt": [-1]}, "prompt", "the token id -1"),
    ({"prompt": ["b"] * 100, "n": 11}, "prompt", "more than 1024 texts"),
    ({"logprobs": True}, "logprobs", "logprobs is True"),
    ({"logprobs": 21}, "logprobs", "logprobs is 21"),
    ({"echo": True}, "echo", "echo is True"),
    ({"best_of": 2}, "best_of", "best_of is not supported"),
    ({"suffix": "b"}, "suffix", "suffix is not supported"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "there is no option max_completion_tokens here"),
]


@pytest.mark.parametrize(
    ("kind", "options", "param", "message"),
    [("chat", *row) for row in CHAT_ERRORS] + [("text", *row) for row in TEXT_ERRORS],
)
def test_what_is_wrong_is_named(server: Server, kind: str, options: Any, param: str, message: str) -> None:
    basis = {"messages": TALK} if kind == "chat" else {"prompt": "b"}
    error = refusal(server.post(kind, **{**basis, **options}))
    assert message in error["message"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_bodies_that_are_none(server: Server) -> None:
    def post(content: bytes, **headers: str) -> Any:
        given = {"content-type": "application/json", **headers}
        return server.client.post("/v1/completions", content=content, headers=given)

    assert "not JSON" in refusal(post(b'{"model": '))["message"]
    refusal(post(b'{"model": "\xff"}'))
    for body in (b"[1]", b'"x"'):
        assert refusal(post(body))["message"] == "the body is no JSON object; send a JSON object"
    refusal(post(b'{"model": "tiny", "prompt": "b", "temperature": NaN}'))
    assert "no body" in refusal(post(b""))["message"]
    assert "Content-Type" in refusal(post(b'{"model": "tiny"}', **{"content-type": "text/plain"}))["message"]
    assert refusal(post(b"{}"))["message"] == "model is missing"
    assert "surrogate" in refusal(post(b'{"model": "tiny", "prompt": "\\ud800"}'))["message"]
    brackets = b'{"model": "tiny", "prompt": "b", "user": [' + b"[]," * 2**19 + b"[]]}"
    assert "at most 524288 are read" in refusal(post(brackets))["message"]
    assert "1025 prompts are more than 1024 texts" in refusal(server.post("text", prompt=["b"] * 1025))["message"]
    assert "at most 16777216" in refusal(post(b" " * (2**24 + 1)), 413)["message"]
    chunked = server.client.post("/v1/completions", content=iter([b"{}"]))
    assert "Content-Length" in refusal(chunked, 411)["message"]


def test_a_prompt_that_is_too_long_is_told_both_numbers(server: Server) -> None:
    for kind, options in (
        ("chat", {"messages": [{"role": "user", "content": "b" * 300}]}),
        ("text", {"prompt": [70] * 160}),
    ):
        error = refusal(server.post(kind, **options))
        read = 160 if kind == "text" else len(server.ids("chat", "b" * 300))
        assert f"the prompt has {read} tokens, and the context of {CONTEXT} tokens" in error["message"]
        assert error["code"] == "context_length_exceeded"


def test_names_and_paths_that_are_not_there(server: Server) -> None:
    for kind, basis in (("chat", {"messages": TALK}), ("text", {"prompt": "b"})):
        error = refusal(server.post(kind, **{**basis, "model": "gpt-9"}), 404)
        assert error["message"] == "there is no model 'gpt-9' here; the model is 'tiny'"
        assert error["code"] == "model_not_found"
    refusal(server.client.get("/v1/models/gpt-9"), 404)
    assert "/v1/images" in refusal(server.client.post("/v1/images", json={}), 404)["message"]
    refusal(server.client.get("/v1/completions"), 405)


def test_what_the_server_says_of_itself(server: Server) -> None:
    assert server.client.get("/health").json() == {
        "status": "ok",
        "preparing": 0,
        "running": 0,
        "waiting": 0,
        "compiling": 0,
    }
    entry = server.client.get("/v1/models").json()["data"][0]
    assert server.client.get("/v1/models/tiny").json() == entry
    created = entry.pop("created")
    assert isinstance(created, int)
    expected = {"id": "tiny", "object": "model", "owned_by": "lit_llm", "context_length": CONTEXT, "chat": True}
    assert entry == {**expected, "quantize": None, "parent": None, "loaded": True}
    counts = {server.ask("text", prompt=[70], seed=s)["usage"]["completion_tokens"] for s in range(3)}
    assert max(counts) == 7  # default_max_tokens


def test_the_interface_is_described(server: Server) -> None:
    described = server.client.get("/openapi.json").json()
    assert set(described["paths"]) >= {"/health", "/v1/models", "/v1/completions", "/v1/chat/completions"}
    assert "top_logprobs" in described["components"]["schemas"]["ChatRequest"]["properties"]


def test_the_page_is_at_the_root(server: Server) -> None:
    page = server.client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert page.text == page_files()["index.html"].content.decode()
    assert server.client.get("/page/main.mjs").content == page_files()["main.mjs"].content
    assert "no file 'x'" in refusal(server.client.get("/page/x"), 404)["message"]


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with serving(save_tiny(tmp_path), api_key="sesame", name="tiny") as server:
        assert server.client.get("/health").status_code == 200
        keys = ("Bearer other", "sesame", "Bearer sesam", "Bearer sesameXYZ", "Bearer sesame sesame")
        for headers in ({}, *({"Authorization": key} for key in keys)):
            server.client.headers.pop("Authorization", None)
            server.client.headers.update(headers)
            assert refusal(server.post("text", prompt="b"), 401)["code"] == "invalid_api_key"
            refusal(server.client.get("/v1/models"), 401)
        server.client.headers["Authorization"] = "Bearer sesame"
        server.ask("text", prompt="b", max_tokens=2)
        assert server.client.get("/v1/models").status_code == 200


def test_a_model_without_a_form_for_conversations(tmp_path: Path) -> None:
    plain = Tokenizer(gpt2(["def f(x):\n    return x\n" * 20]), {"eos_token": "</s>"})
    with serving(save_tiny(tmp_path, plain)) as server:
        error = refusal(server.post("chat", messages=TALK))
        assert "neither a chat template" in error["message"] and "/v1/completions" in error["message"]
        assert server.client.get("/v1/models").json()["data"][0]["chat"] is False
        server.ask("text", prompt="def", max_tokens=3)


def test_a_template_of_another_model(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    foreign = Tokenizer(gpt2(["def f(x):\n    return x\n" * 20]), config)
    with serving(save_tiny(tmp_path, foreign)) as server:
        done = server.expected("chat", "def", seed=1, max_new_tokens=20)
        body = server.ask("chat", messages=[{"role": "user", "content": "def"}], seed=1, max_tokens=20)
        assert body["choices"][0]["message"]["content"] == done.text
        ids = [foreign.special_ids["<s>"], *foreign.encode("[user]def"), foreign.special_ids["</s>"]]
        assert server.ids("chat", "def")[: len(ids)] == ids
        assert body["usage"]["prompt_tokens"] == len(server.ids("chat", "def"))
        talk = ChatRequest(model="tiny", messages=[ChatMessage(role="user", content="def")])
        for rule, expected in (("auto", ids), ("always", ids), ("never", ids[1:])):
            served = describe(ServeConfig(begin_token=rule), server.loaded)
            assert served.texts_of_chat(talk)[0].prompt[: len(expected)] == expected


def test_special_tokens_of_prompts(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """They are read in prompts unless the request says otherwise, and never in messages, of which a line tells once."""
    tokenizer, prompt = server.tokenizer, "<|im_start|>user\nb<|im_end|>\n"
    served = describe(ServeConfig(), server.loaded)
    read, letters, anew = (
        served.texts_of_completion(CompletionRequest(model="tiny", prompt=text, special_tokens=special))[0].prompt
        for text, special in ((prompt, True), (prompt, False), ("<|endoftext|>b", True))
    )
    begin = [tokenizer.eot_id]
    assert read == begin + tokenizer.encode(prompt, allow_special=True) and letters == begin + tokenizer.encode(prompt)
    assert anew == begin + tokenizer.encode("b")  # and not twice
    never = describe(ServeConfig(begin_token="never"), server.loaded)
    assert never.texts_of_completion(CompletionRequest(model="tiny", prompt="b"))[0].prompt == tokenizer.encode("b")
    for _ in range(2):
        talk = ChatRequest(model="tiny", messages=[ChatMessage(role="user", content="b<|im_end|>")])
        assert served.texts_of_chat(talk)[0].prompt.count(tokenizer.im_end_id) == 1
    told = [record.message for record in caplog.records if "names of special" in record.message]
    assert len(told) == 1 and told[0].startswith("a prompt has <|im_start|>, <|im_end|>, names of special tokens")
    for options, ids in (({}, read), ({"special_tokens": False}, letters)):
        usage = server.ask("text", prompt=prompt, max_tokens=1, **options)["usage"]
        assert usage["prompt_tokens"] == len(ids)


def test_schemas_that_cannot_be_followed(server: Server) -> None:
    pytest.importorskip("outlines_core", reason="the extra constrained is not installed")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    error = refusal(server.post("chat", messages=TALK, response_format=form))
    assert "cannot be followed" in error["message"] and error["param"] == "response_format"


def test_the_missing_package_for_schemas_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}
    error = refusal(server.post("chat", messages=TALK, response_format=form))
    assert "pip install 'lit-llm[constrained]'" in error["message"]
