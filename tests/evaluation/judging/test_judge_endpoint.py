"""An endpoint that fails in every way that endpoints do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, judging

from lit_llm.config import EndpointConfig, JudgeSourceConfig, UserError
from lit_llm.evaluation.judging import endpoint as endpoint_module
from lit_llm.evaluation.judging.endpoint import Endpoint, Refused, content_of, tokens_of
from lit_llm.evaluation.judging.endpoint_judge import EndpointJudge
from lit_llm.evaluation.judging.wording import Question
from lit_llm.tokenizer import Message

ASK = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """Replies "fine"; the pauses between attempts are short."""
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE", 0.001)
    monkeypatch.delenv("LIT_LLM_API_KEY", raising=False)
    with judging(lambda answers, messages: "fine") as server:
        yield server


def endpoint(server: JudgeServer, model: str | None = "m", **options: Any) -> Endpoint:
    return Endpoint(server.url, model, EndpointConfig(**options), "judge.url")


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "reset", "text", "list", (429, {"Retry-After": "soon"})])
def test_what_may_pass_is_tried_again(fault: Any, server: JudgeServer) -> None:
    server.faults = [fault, fault]
    assert content_of(endpoint(server).chat(ASK)) == "fine"
    assert len(server.times) == 3
    server.always = fault
    with pytest.raises(UserError, match=r"judge\.url http.*/v1: no answer after 2 attempts in \d+ s \(.+\)") as found:
        endpoint(server, attempts=2).chat(ASK)
    told = {"text": "not JSON: '<html>busy", "list": "not an object", "reset": ""}
    expected = told[fault] if isinstance(fault, str) else f"status {fault if isinstance(fault, int) else 429}, told to"
    assert expected in str(found.value) and len(server.times) == 5


@pytest.mark.parametrize("header", ["0.3", "Thu, 01 Jan 2015 00:00:00 GMT"], ids=["seconds", "a date that has passed"])
def test_retry_after(header: str, server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE", 1000.0)
    server.faults = [(429, {"Retry-After": header})]
    assert content_of(endpoint(server).chat(ASK)) == "fine"
    assert server.times[1] - server.times[0] >= (0.3 if header == "0.3" else 0.0)


def test_an_endpoint_that_never_answers(server: JudgeServer) -> None:
    server.always = "slow"
    with pytest.raises(UserError, match=r"no answer after 2 attempts .*nothing came within 0\.05 s"):
        endpoint(server, timeout=0.05, attempts=2).chat(ASK)


def test_an_endpoint_that_is_down(server: JudgeServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=r"after 3 attempts .*refused"):
            Endpoint(address, "m", EndpointConfig(attempts=3), "judge.url").chat(ASK)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, "it wants a key .status 401, told to say 401.; give api_key_file, or set LIT_LLM_API_KEY"),
        (403, "it wants a key"),
        (404, "status 404, told to say 404; correct the address or the model's name"),
        ((302, {"Location": "http://127.0.0.1:9/v1"}), "status 302"),
    ],
)
def test_what_will_not_pass_is_said_at_once(fault: Any, message: str, server: JudgeServer) -> None:
    server.always = fault
    with pytest.raises(UserError, match=message):
        endpoint(server).chat(ASK)
    assert len(server.times) == 1


def test_the_key(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("sesame\n")
    monkeypatch.setenv("OTHER_KEY", "open")
    endpoint(server, api_key_file=str(tmp_path / "key")).chat(ASK)
    endpoint(server, key_variable="OTHER_KEY").chat(ASK)
    endpoint(server).chat(ASK)
    assert server.keys == ["Bearer sesame", "Bearer open", None]
    server.always = 401
    with pytest.raises(UserError, match="the key was refused"):
        endpoint(server, key_variable="OTHER_KEY").chat(ASK)
    (tmp_path / "key").write_text("two\nlines")
    for file, told in (("key", "has no key"), ("nowhere", "cannot be read")):
        with pytest.raises(UserError, match=told):
            endpoint(server, api_key_file=str(tmp_path / file))


def test_the_model_is_the_only_one_that_is_listed(server: JudgeServer) -> None:
    assert endpoint(server, model=None).find_model() == "stand-in"
    server.models = ["one", "other"]
    with pytest.raises(UserError, match="lists several models: one, other; say which one is meant"):
        endpoint(server, model=None).find_model()
    server.models = []
    with pytest.raises(UserError, match="lists no model"):
        endpoint(server, model=None).find_model()


@pytest.mark.parametrize(("given", "address"), [("", "/v1"), ("/", "/v1"), ("/v1/", "/v1"), ("/api/v3", "/api/v3")])
def test_addresses(given: str, address: str) -> None:
    assert Endpoint(f"http://host:1{given}", "m", EndpointConfig(), "").address == f"http://host:1{address}"


def test_no_more_at_once_than_is_allowed(server: JudgeServer) -> None:
    lock, running = threading.Lock(), [0, 0]  # now, and at most

    def work(item: int) -> tuple[int, Any]:
        with lock:
            running[0] += 1
            running[1] = max(running)
        reply = endpoint(server).chat(ASK)
        with lock:
            running[0] -= 1
        return item, reply

    found = dict(endpoint(server, at_once=3).each(range(20), work))
    assert sorted(found) == list(range(20)) and all(found[item][0] == item for item in found)
    assert 1 <= running[1] <= 3


def test_what_has_come_before_a_failure_is_not_lost(server: JudgeServer) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise UserError("the fourth")
        return item

    came = []
    with pytest.raises(UserError, match="the fourth"):
        for number, result in endpoint(server, at_once=1).each(range(6), work):
            came.append((number, result))
    assert came[:3] == [(0, 0), (1, 1), (2, 2)]


def test_replies_that_are_not_in_form() -> None:
    assert content_of({"choices": [{"message": {"content": ""}}]}) == ""
    for reply in ({}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, {"choices": "text"}):
        with pytest.raises(Refused):
            content_of(reply)
    for usage in (None, {}, [], {"prompt_tokens": "many", "completion_tokens": -1}):
        assert tokens_of({"usage": usage}) == (0, 0)
    assert tokens_of({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}) == (3, 4)


QUESTIONS = [Question((Message("user", "x"),), "a" * number, "other") for number in range(1, 6)]


def test_prose_is_answered_by_one_reminder(server: JudgeServer) -> None:
    def rule(answers: list[str], messages: list[dict[str, str]]) -> str:
        if len(answers[0]) == 3:
            return "I like both."
        return "[[A]]" if len(messages) == 3 else "The first is nice."

    server.rule = rule
    judge = EndpointJudge(JudgeSourceConfig(url=server.url), None)
    assert judge.name == f"stand-in at {server.url}/v1"
    replies = dict(judge.judge(QUESTIONS))
    for number, reply in replies.items():
        assert reply.reminded and (reply.prompt_tokens, reply.completion_tokens) == (200, 14)
        unread = number == 2
        assert (reply.verdict, reply.problem) == ((None, "no verdict in its reply") if unread else ("first", ""))
    roles = [message["role"] for message in server.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "user"] and server.bodies[-1]["messages"][1]["content"]
    assert len(server.bodies) == 10


def test_what_is_asked_for(server: JudgeServer) -> None:
    server.rule = lambda answers, messages: '{"verdict": "B"}'
    config = JudgeSourceConfig(url=server.url, model="m", json_verdict=True, max_tokens=9)
    assert dict(EndpointJudge(config, None).judge(QUESTIONS[:1]))[0].verdict == "second"
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0.0)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["verdict"]
    plain = JudgeSourceConfig(url=server.url, model="m", temperature=None, tokens_field="max_completion_tokens")
    dict(EndpointJudge(plain, None).judge(QUESTIONS[:1]))
    assert set(server.bodies[-1]) == {"model", "messages", "max_completion_tokens"}


def test_a_question_that_is_refused_is_left_out_and_a_judge_that_refuses_all_is_an_error(server: JudgeServer) -> None:
    server.rule = lambda answers, messages: "[[A]]"
    config = JudgeSourceConfig(url=server.url, model="m", at_once=1)
    server.faults = [400, 413]
    replies = dict(EndpointJudge(config, None).judge(QUESTIONS))
    assert [replies[number].problem for number in range(3)] == [
        "status 400, told to say 400",
        "status 413, told to say 413",
        "",
    ]
    assert replies[4].verdict == "first"
    server.always = 400
    before = len(server.times)
    with pytest.raises(UserError, match="refuses every question: status 400, told to say 400"):
        list(EndpointJudge(config, None).judge(QUESTIONS))
    assert len(server.times) - before == 3
