"""What a server writes: the same texts as without one, with the same numbers beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, no_end, save_tiny, serving

from lit_llm.config import SamplingConfig, sample_seed
from lit_llm.generation import Engine, json_object


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(save_tiny(tmp_path_factory.mktemp("served"))) as server:
        yield server


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def asked(kind: str, prompt: Any) -> dict[str, Any]:
    return {"messages": user(prompt)} if kind == "chat" else {"prompt": prompt}


def text_of(choice: dict[str, Any]) -> str:
    return choice["message"]["content"] if "message" in choice else choice["text"]


def events(server: Server, kind: str, **options: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end as streams do."""
    response = server.post(kind, stream=True, **options)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.content.decode("utf-8").split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    assert all(part.startswith("data: ") for part in parts[:-1])
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_texts_are_those_of_the_engine_alone_and_among_others(server: Server, kind: str) -> None:
    prompts = [letter * (length + 1) for length, letter in enumerate("bcdfghjk")]
    expected = [server.expected(kind, p, seed=seed, max_new_tokens=40) for seed, p in enumerate(prompts)]
    assert len({done.text for done in expected}) == 8
    assert {done.finish_reason for done in expected} == {"stop", "length"}

    def ask(seed: int) -> dict[str, Any]:
        return server.ask(kind, **asked(kind, prompts[seed]), seed=seed, max_tokens=40)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    for body, alone, done, prompt in zip(together, map(ask, range(8)), expected, prompts, strict=True):
        choice = body["choices"][0]
        assert text_of(choice) == text_of(alone["choices"][0]) == done.text
        assert choice["finish_reason"] == alone["choices"][0]["finish_reason"] == done.finish_reason
        read, written = len(server.ids(kind, prompt)), len(done.ids)
        for usage in (body["usage"], alone["usage"]):
            cached = usage.pop("prompt_tokens_details")["cached_tokens"]
            assert usage == {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        assert cached == (read - 1) // 16 * 16  # whole pages of what was read before


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_joined_is_the_whole_text(server: Server, kind: str) -> None:
    options = {**asked(kind, "bcd"), "seed": 3, "n": 3, "max_tokens": 40, "stop": ["b", "cd"]}
    whole = server.ask(kind, **options)
    chunks = events(server, kind, stream_options={"include_usage": True}, **options)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({(chunk["id"], chunk["model"], chunk["created"]) for chunk in chunks}) == 1
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == index]
        assert [part["finish_reason"] for part in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == whole["choices"][index]["finish_reason"]
        if kind == "chat":
            assert own[0]["delta"] == {"role": "assistant", "content": ""} and own[-1]["delta"] == {}
            text = "".join(part["delta"].get("content", "") for part in own)
            assert all("role" not in part["delta"] for part in own[1:])
        else:
            text = "".join(part["text"] for part in own)
        assert text == text_of(whole["choices"][index])
    assert not any("usage" in chunk for chunk in events(server, kind, **options))


def test_bytes_of_a_character_come_together(server: Server) -> None:
    """A text of one character of three bytes again and again, each of them a token."""
    ids = server.tokenizer.encode("€")
    assert len(ids) == 3
    # each of its bytes is wanted 100, less 2 for each time that it was there, so they come in turn
    options = {"prompt": ids, "temperature": 0, "max_tokens": 5, "frequency_penalty": 2, "presence_penalty": 2}
    bias = {str(token): 100 - place for place, token in enumerate(ids)}
    chunks = events(server, "text", logit_bias=bias, **options)
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces).startswith("€") and pieces[0] == "€"


def test_every_option_reaches_the_engine(server: Server) -> None:
    options = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 11,
    }
    plain = {"temperature": 1.0, "seed": 11}
    done = server.expected("text", "bcd", max_new_tokens=30, logit_bias={70: 3.0}, **options)
    assert done.text != server.expected("text", "bcd", max_new_tokens=30, **plain).text
    body = server.ask("text", prompt="bcd", max_tokens=30, logit_bias={"70": 3}, **options)
    assert body["choices"][0]["text"] == done.text
    without = [{key: value for key, value in options.items() if key != name} for name in options if name != "seed"]
    texts = {server.expected("text", "bcd", max_new_tokens=30, logit_bias={70: 3.0}, **rest).text for rest in without}
    assert done.text not in texts or len(texts) > 4  # nearly each of them makes a difference by itself
    chat = server.ask("chat", messages=user("b"), max_completion_tokens=2, logit_bias=no_end(server))
    assert chat["usage"]["completion_tokens"] == 2
    greedy = server.ask("text", prompt="bcd", max_tokens=9, temperature=0)
    assert greedy["choices"][0]["text"] == server.expected("text", "bcd", max_new_tokens=9, temperature=0.0).text
    asking_nothing = {"user": "me", "metadata": {"a": "b"}, "store": False, "echo": False, "stop": None, "tools": None}
    again = server.ask("text", prompt="bcd", max_tokens=9, top_k=1, response_format={"type": "text"}, **asking_nothing)
    assert again["choices"][0]["text"] == greedy["choices"][0]["text"]


def test_without_a_seed_texts_differ(server: Server) -> None:
    texts = {server.ask("text", prompt="b", max_tokens=12)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 3


def test_stop_strings_end_texts_before_them(server: Server) -> None:
    free = server.expected("text", "bcd", seed=5, max_new_tokens=60)
    stop = next(letter for letter in free.text[5:] if letter.isascii() and letter.isprintable())
    for given in (stop, ["zzzz", stop], [stop, "yyyy", "zzzz", "xxxx"]):
        body = server.ask("text", prompt="bcd", seed=5, max_tokens=60, stop=given)
        choice = body["choices"][0]
        assert choice["text"] == free.text[: free.text.index(stop)] and choice["finish_reason"] == "stop"
        assert 0 < body["usage"]["completion_tokens"] < len(free.ids)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_samples_draw_with_seeds_of_their_own(server: Server, kind: str) -> None:
    body = server.ask(kind, **asked(kind, "bcdf"), n=3, seed=20, max_tokens=15)
    expected = [server.expected(kind, "bcdf", seed=sample_seed(20, sample), max_new_tokens=15) for sample in range(3)]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [text_of(choice) for choice in body["choices"]] == [done.text for done in expected]
    assert len({done.text for done in expected}) == 3
    written = sum(len(done.ids) for done in expected)
    assert body["usage"]["prompt_tokens"] == len(server.ids(kind, "bcdf"))
    assert body["usage"]["completion_tokens"] == written


def test_prompts_come_in_four_forms(server: Server) -> None:
    ids = [70, 71, 72]
    for prompt, each in (
        ("bcd", ["bcd"]),
        (["bcd", "fg"], ["bcd", "fg"]),
        (ids, [ids]),
        ([ids, [80]], [ids, [80]]),
    ):
        body = server.ask("text", prompt=prompt, n=2, seed=4, max_tokens=6)
        expected = [
            server.expected("text", one, seed=sample_seed(4, s), max_new_tokens=6).text for one in each for s in (0, 1)
        ]
        assert [choice["text"] for choice in body["choices"]] == expected
        assert body["usage"]["prompt_tokens"] == sum(len(server.ids("text", one)) for one in each)


def test_content_comes_in_parts_and_answers_go_back(server: Server) -> None:
    parts = [{"type": "text", "text": "bc"}, {"type": "text", "text": "d"}]
    one, other = (server.ask("chat", messages=user(c), seed=1, max_tokens=9) for c in ("bcd", parts))
    assert one["choices"] == other["choices"]
    answer = one["choices"][0]["message"]
    talk = [{"role": "system", "content": "f"}, *user("bcd"), answer, *user("g")]
    longer = server.ask("chat", messages=talk, seed=1, max_tokens=9)
    assert longer["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_log_probabilities_are_the_engines(server: Server, kind: str) -> None:
    ids = server.ids(kind, "bcd")
    engine = Engine(server.loaded.model, 1, tokenizer=server.tokenizer)
    sampling = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=2, context_full="stop")
    request = engine.submit(ids, sampling, stop_tokens=server.loaded.stop_tokens, log_probs=3)
    done = engine.run()[request]
    wanted = {"logprobs": True, "top_logprobs": 3} if kind == "chat" else {"logprobs": 3}
    options = {**asked(kind, "bcd"), "seed": 2, "max_tokens": 12, **wanted}
    told = server.ask(kind, **options)["choices"][0]["logprobs"]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in events(server, kind, **options)]
    streamed = [found for found in streamed if found is not None]
    own = pytest.approx([place.chosen for place in done.log_probs], abs=1e-5)
    if kind == "chat":
        content = told["content"]
        assert [entry["logprob"] for entry in content] == own
        assert [bytes(entry["bytes"]) for entry in content] == [server.tokenizer.token_bytes(t) for t in done.ids]
        for entry, place in zip(content, done.log_probs, strict=True):
            likeliest = [(bytes(other["bytes"]), other["logprob"]) for other in entry["top_logprobs"]]
            assert [spelled for spelled, _ in likeliest] == [
                server.tokenizer.token_bytes(token) for token, _ in place.alternatives
            ]
            assert [value for _, value in likeliest] == pytest.approx([v for _, v in place.alternatives], abs=1e-5)
        assert [entry for found in streamed for entry in found["content"]] == content
    else:
        assert told["token_logprobs"] == own
        spelled = [server.tokenizer.token_bytes(token) for token in done.ids]
        assert len(told["tokens"]) == len(spelled)
        for token, value, likeliest in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
            assert likeliest[token] == value and 3 <= len(likeliest) <= 4
        starts = [sum(byte & 0xC0 != 0x80 for byte in one) for one in spelled]
        assert told["text_offset"] == [0, *accumulate(starts)][:-1]
        for name, values in told.items():
            assert [value for found in streamed for value in found[name]] == values
    plain = {**options, "logprobs": False} if kind == "chat" else {**options, "logprobs": None}
    plain.pop("top_logprobs", None)
    assert server.ask(kind, **plain)["choices"][0]["logprobs"] is None


def test_answers_are_json_of_the_schema(server: Server) -> None:
    pytest.importorskip("outlines_core", reason="the extra constrained is not installed")
    schema = {
        "type": "object",
        "properties": {"odd": {"type": "boolean"}, "kind": {"enum": ["bc", "df"]}},
        "required": ["odd", "kind"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = server.ask("chat", messages=user("b"), response_format=form, n=8, temperature=2, seed=1, max_tokens=100)
    values = [json.loads(choice["message"]["content"]) for choice in body["choices"]]
    assert all(set(value) == {"odd", "kind"} and isinstance(value["odd"], bool) for value in values)
    assert len({json.dumps(value) for value in values}) > 1
    assert {choice["finish_reason"] for choice in body["choices"]} == {"stop"}


def test_answers_are_json_objects_of_any_kind(server: Server) -> None:
    """Without a library; a text that is cut off is the beginning of one."""
    favoured = {str(server.tokenizer.encode(letter)[0]): 5 for letter in '"}]'}
    body = server.ask(
        "chat",
        messages=[{"role": "developer", "content": "c"}, *user("b")],
        response_format={"type": "json_object"},
        n=16,
        temperature=2,
        seed=1,
        max_tokens=40,
        logit_bias=favoured,
    )
    texts: dict[str, list[str]] = {"stop": [], "length": []}
    for choice in body["choices"]:
        texts[choice["finish_reason"]].append(choice["message"]["content"])
    assert all(isinstance(json.loads(text), dict) for text in texts["stop"]) and len(set(texts["stop"])) > 1
    automaton = json_object()
    assert all(automaton.after(0, text.encode()) != automaton.dead for text in texts["length"] if "\ufffd" not in text)


def test_a_full_context_ends_a_text(server: Server) -> None:
    body = server.ask("text", prompt=[70] * 150, logit_bias=no_end(server))
    assert body["choices"][0]["finish_reason"] == "length"
    # a text of 160 tokens and the one that follows it
    counts = {"prompt_tokens": 150, "completion_tokens": 11, "total_tokens": 161}
    assert body["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_what_was_read_and_written_is_not_read_again(server: Server, kind: str) -> None:
    """The second turn, the samples of a prompt, and both of them in a stream."""

    def ask(prompt: Any, **options: Any) -> tuple[list[str], int]:
        body = server.ask(kind, **prompt, max_tokens=24, seed=4, **options)
        return [text_of(choice) for choice in body["choices"]], body["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert server.worker.prefix_cache is not None
    begin = server.worker.prefix_cache.counts()
    prompt = "kkjj" + kind[0] * 40
    read = len(server.ids(kind, prompt))
    forced = {"logit_bias": no_end(server)}
    texts, cached = ask(asked(kind, prompt), n=2, **forced)
    assert cached == 0  # a sample shares the other's, but the prompt was read once
    answered = server.worker.prefix_cache.counts()
    assert (answered.requests - begin.requests, answered.hits - begin.hits) == (2, 1)
    assert answered.cached_tokens - begin.cached_tokens == read - 1
    if kind == "chat":
        turns = [*user(prompt), {"role": "assistant", "content": texts[0]}, *user("bc")]
        expected = (read + 23) // 16 * 16  # the answer as well, but for its last token
        again: dict[str, Any] = {"messages": turns}
    else:
        again, expected = {"prompt": prompt}, (read - 1) // 16 * 16
    told, cached = ask(again, **forced)
    assert cached == expected
    chunks = events(server, kind, **again, max_tokens=24, seed=4, stream_options={"include_usage": True}, **forced)
    longer = (chunks[-1]["usage"]["prompt_tokens"] - 1) // 16 * 16
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": longer}
    with serving(server.loaded.folder, prefix_cache_mib=0) as forgetful:
        assert forgetful.worker.prefix_cache is None
        body = [forgetful.ask(kind, **again, max_tokens=24, seed=4, **forced) for _ in range(2)][1]
    assert [text_of(choice) for choice in body["choices"]] == told
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
