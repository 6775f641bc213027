"""OpenAI's own client against the server."""

from __future__ import annotations

import json
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
    assert last.choices == [] and last.usage.total_tokens == second.usage.total_tokens
    # whole pages of what was read before
    assert last.usage.prompt_tokens_details.cached_tokens == (last.usage.prompt_tokens - 1) // 16 * 16


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


def test_responses(client: openai.OpenAI, server: Server) -> None:
    """Text in, text out; instructions are the system's turn, and the conversation so far may be the answer's items."""
    first = client.responses.create(model="tiny", input="bcd", temperature=0, max_output_tokens=12)
    expected = server.expected("chat", "bcd", temperature=0.0, max_new_tokens=12)
    assert first.output_text == expected.text and first.object == "response" and first.model == "tiny"
    cut = expected.finish_reason == "length"
    assert first.status == ("incomplete" if cut else "completed") and (first.incomplete_details is not None) == cut
    assert first.usage.output_tokens == len(expected.ids)
    assert first.usage.input_tokens == len(server.ids("chat", "bcd"))
    talk = [{"role": "user", "content": "bcd"}, *first.output, {"role": "user", "content": "f"}]
    chat = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": "gh"},
            {"role": "user", "content": "bcd"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "f"},
        ],
        temperature=0,
        max_tokens=12,
    )
    options = {"model": "tiny", "instructions": "gh", "temperature": 0, "max_output_tokens": 12}
    second = client.responses.create(input=talk, **options)
    assert second.output_text == chat.choices[0].message.content
    assert second.usage.input_tokens == chat.usage.prompt_tokens and second.instructions == "gh"
    events = list(client.responses.create(input=talk, stream=True, **options))
    kinds = [event.type for event in events]
    begun = ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[:4] == [f"response.{name}" for name in begun]
    ended = ["output_text.done", "content_part.done", "output_item.done", second.status]
    assert kinds[-4:] == [f"response.{name}" for name in ended]
    assert {*kinds[4:-4]} == {"response.output_text.delta"}
    assert "".join(event.delta for event in events[4:-4]) == second.output_text == events[-4].text
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert events[-1].response.output_text == second.output_text and events[-1].response.usage == second.usage
    form = {"format": {"type": "json_object"}}
    held_to = client.responses.create(model="tiny", input="b", text=form, temperature=0, max_output_tokens=40)
    assert held_to.output_text.startswith("{") and held_to.text.format.type == "json_object"
    with client.responses.stream(input=talk, **options) as stream:
        assert stream.get_final_response().output_text == second.output_text if second.status == "completed" else True


def test_responses_that_are_refused(client: openai.OpenAI, server: Server) -> None:
    def refused(**options: object) -> str:
        with pytest.raises(openai.BadRequestError) as found:
            client.responses.create(**{"model": "tiny", "input": "b", **options})
        return found.value.message

    assert "answers are not kept here; send the conversation so far as input" in refused(previous_response_id="resp_1")
    assert "tools are not supported" in refused(tools=[{"type": "web_search"}])
    assert "input has an item of type 'function_call_output'" in refused(
        input=[{"type": "function_call_output", "call_id": "x", "output": "y"}]
    )
    image = {"type": "input_image", "image_url": "x"}
    assert "content must be text" in refused(input=[{"role": "user", "content": [image]}])
    assert "there is no option max_tokens here" in refused(extra_body={"max_tokens": 3})
    assert "store is True" in refused(store=True)
    for kind in ("text", "json_object"):
        form = {"type": kind, "schema": {"type": "null"}}
        assert f"text.format of type {kind} takes no schema" in refused(text={"format": form})
    schema = {"type": "json_schema", "name": "x", "schema": {"enum": ["\ud800"]}}
    for option in ({"user": "\ud800"}, {"metadata": {"a": "\ud800"}}, {"text": {"format": schema}}):
        body = json.dumps({"model": "tiny", "input": "b", **option}).encode()
        headers = {"content-type": "application/json", "authorization": "Bearer sesame"}
        answer = server.client.post("/v1/responses", content=body, headers=headers)
        said = f"{next(iter(option))} has half of a surrogate pair, which is no character"
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, said)
    with held(server.loaded.model, fail=True) as release:
        stream = client.responses.create(model="tiny", input="b", stream=True)
        next(stream)
        release()
        *_, last = stream
    assert last.type == "response.failed" and "the model failed" in last.response.error.message


def test_embeddings(client: openai.OpenAI) -> None:
    """The client asks for base64 by itself, and both forms are the same numbers."""
    texts = ["bcd", "f", "bcd"]
    packed = client.embeddings.create(model="tiny", input=texts)
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float", dimensions=32)
    assert [each.index for each in packed.data] == [0, 1, 2]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
        assert sum(number**2 for number in one.embedding) == pytest.approx(1.0, abs=1e-5)
    assert packed.data[0].embedding == pytest.approx(packed.data[2].embedding, abs=1e-5)
    assert packed.data[0].embedding != pytest.approx(packed.data[1].embedding, abs=1e-2)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 2 * (1 + 3) + 2
    with pytest.raises(openai.BadRequestError, match="dimensions is 8; vectors of tiny have 32"):
        client.embeddings.create(model="tiny", input="b", dimensions=8)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        client.embeddings.create(model="gpt-9", input="b")
