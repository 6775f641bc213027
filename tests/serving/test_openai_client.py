"""OpenAI's own client against the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, held, save_tiny, serving

openai = pytest.importorskip("openai", reason="the package openai is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(save_tiny(tmp_path_factory.mktemp("served")), api_key="sesame", quantize="int8") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0) as client:
        yield client


TALK = [{"role": "user", "content": "bcd"}]


def test_a_conversation(client: openai.OpenAI, server: Server) -> None:
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model == "tiny"
    first = client.chat.completions.create(model=model, messages=TALK, seed=1, max_tokens=20)
    assert first.choices[0].message.content == server.expected("chat", "bcd", seed=1, max_new_tokens=20).text
    talk = [*TALK, first.choices[0].message, {"role": "user", "content": "f"}]
    second = client.chat.completions.create(model=model, messages=talk, seed=1, max_completion_tokens=20)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens
    stream = client.chat.completions.create(
        model=model, messages=talk, seed=1, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == second.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == second.choices[0].finish_reason
    assert last.choices == [] and last.usage == second.usage


def test_ids_of_requests_and_json_mode(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": "c"}, *TALK],
        response_format={"type": "json_object"},
        max_tokens=5,
        extra_headers={"X-Request-Id": "mine"},
    )
    assert done.choices[0].message.content.startswith("{") and done._request_id == "mine"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("other")
    assert len(refused.value.request_id) == 32


def test_log_probabilities_and_samples(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny", messages=TALK, seed=1, n=2, max_tokens=8, logprobs=True, top_logprobs=2
    )
    assert len(done.choices) == 2
    entries = [entry for choice in done.choices for entry in choice.logprobs.content]
    assert len(entries) == done.usage.completion_tokens
    assert all(entry.logprob < 0 and len(entry.top_logprobs) == 2 for entry in entries)
    plain = client.completions.create(model="tiny", prompt=["b", "c"], seed=1, max_tokens=8, logprobs=1)
    assert len(plain.choices) == 2 and len(plain.choices[0].logprobs.tokens) > 0
    pieces = client.completions.create(model="tiny", prompt="b", seed=1, max_tokens=8, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == plain.choices[0].text


def test_errors_are_the_clients_own(client: openai.OpenAI, server: Server) -> None:
    def ask(**options: object) -> None:
        client.chat.completions.create(**{"model": "tiny", "messages": TALK, **options})

    with pytest.raises(openai.BadRequestError, match="temperature is 99") as found:
        ask(temperature=99)
    assert found.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        ask(model="gpt-9")
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.with_options(api_key="other").models.list()
    with held(server.loaded.model, fail=True) as release:
        stream = client.chat.completions.create(model="tiny", messages=TALK, stream=True)
        next(stream)
        release()
        with pytest.raises(openai.APIError, match="the model failed"):
            list(stream)
    ask(max_tokens=3)
