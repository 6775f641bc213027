"""Keys with names and limits. The clock of the limits stands still, unless a test moves it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, held, no_end, save_tiny, serving, wait_until

from lit_llm.config import ServeConfig, UserError
from lit_llm.serving import keys
from lit_llm.serving.errors import ApiError
from lit_llm.serving.keys import Account, Bucket, Key, Keys, read_keys

KEYS = f"""
ann: {{key: ann-key, requests_per_minute: 2}}
bob: {{sha256: {hashlib.sha256(b"bob-key").hexdigest()}, tokens_per_minute: 50}}
cid: {{key: cid-key}}
dee: {{key: dee-key, tokens_per_minute: 170}}
"""


class Clock:
    """A clock that stands."""

    now = 1000.0


@pytest.fixture(scope="module")
def clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: Clock.now))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def path(folder: Path) -> Path:
    """The file of keys, as it is at first."""
    path = folder.parent / "keys.yaml"
    path.write_text(KEYS)
    return path


@pytest.fixture
def server(folder: Path, path: Path, clock: None) -> Iterator[Server]:
    log = folder.parent / "log.jsonl"
    log.unlink(missing_ok=True)
    with serving(folder, max_batch=1, keys_file=str(path), request_log=str(log)) as server:
        yield server


def post(server: Server, name: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {name}-key"}
    body = {"model": "tiny", "prompt": [70], "max_tokens": 2, "logit_bias": no_end(server), **options}
    return server.client.post("/v1/completions", headers=headers, json=body)


def limits(response: Any, kind: str) -> tuple[str, str, str]:
    return tuple(response.headers[f"x-ratelimit-{what}-{kind}"] for what in ("limit", "remaining", "reset"))  # type: ignore[return-value]


def test_requests_of_a_minute(server: Server, clock: None) -> None:
    assert limits(post(server, "ann"), "requests") == ("2", "1", "30.000s")
    assert limits(post(server, "ann", temperature=9), "requests") == ("2", "0", "60.000s")  # a wrong one counts too
    refused = post(server, "ann")
    error = refused.json()["error"]
    assert refused.status_code == 429 and error["type"] == "rate_limit_error" and error["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "30" and "'ann' has 2 requests a minute" in error["message"]
    assert limits(refused, "requests") == ("2", "0", "60.000s")
    assert server.client.get("/v1/models", headers={"Authorization": "Bearer ann-key"}).status_code == 200
    other = post(server, "cid")
    assert other.status_code == 200 and not [name for name in other.headers if name.startswith("x-ratelimit")]
    Clock.now += 30
    assert post(server, "ann").status_code == 200 and post(server, "ann").status_code == 429


def test_tokens_of_a_minute_are_taken_before_and_given_back(server: Server, clock: None) -> None:
    refused = post(server, "bob", max_tokens=60)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "max_tokens"
    assert "may have 61 tokens; the key 'bob' has 50 a minute" in refused.json()["error"]["message"]
    with ThreadPoolExecutor(1) as pool:
        with held(server.loaded.model):
            first = pool.submit(post, server, "bob", max_tokens=30)
            server.wait_for(1, 0)
            refused = post(server, "bob", max_tokens=20)
            # 19 are left, 21 may come: two more are there in 2.4 s
            assert refused.status_code == 429 and refused.headers["retry-after"] == "3"
            assert limits(refused, "tokens") == ("50", "19", "37.200s")
        assert first.result().json()["usage"]["total_tokens"] == 31
    end = {str(server.loaded.stop_tokens[0]): 100}
    short = post(server, "bob", max_tokens=18, logit_bias=end)
    assert short.json()["usage"]["completion_tokens"] == 0 and limits(short, "tokens")[1] == "18"  # not 0
    last = post(server, "bob", max_tokens=17)  # of the 19 one was used: 18 are left
    assert last.status_code == 200 and limits(last, "tokens")[1] == "0"


def test_no_more_tokens_are_taken_than_the_context_holds(server: Server, clock: None) -> None:
    """A limit beyond the context is no reason to refuse for ever what can come to less."""
    done = post(server, "dee", max_tokens=10_000, prompt=[70, 71])
    assert done.status_code == 200 and done.json()["usage"]["total_tokens"] == 161  # the context, and one
    refused = post(server, "dee", max_tokens=10_000, n=2)
    assert "may have 321 tokens; the key 'dee' has 170 a minute" in refused.json()["error"]["message"]


def test_a_request_that_finds_no_place_costs_nothing(folder: Path, path: Path, clock: None) -> None:
    with (
        serving(folder, max_batch=1, max_waiting=0, keys_file=str(path)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        with held(server.loaded.model):
            first = pool.submit(post, server, "cid")
            server.wait_for(1, 0)
            assert post(server, "bob", max_tokens=30).json()["error"]["code"] == "too_many_requests"
            wait_until(lambda: len(server.process._operations.active) == 1)
        assert first.result().status_code == 200
        assert post(server, "bob", max_tokens=49).status_code == 200


def test_a_key_that_goes_ends_its_streams(server: Server, path: Path) -> None:
    body = {"model": "tiny", "prompt": [70], "max_tokens": 100, "stream": True, "logit_bias": no_end(server)}
    headers = {"Authorization": "Bearer bob-key"}
    body["max_tokens"] = 40
    with (
        held(server.loaded.model, after=3) as release,
        server.client.stream("POST", "/v1/completions", headers=headers, json=body) as response,
    ):
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"]
        path.write_text(KEYS.replace("bob:", "rob:"))  # the same key by another name is another's
        rest = [line for line in lines if line]
        release()
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["code"] == "invalid_api_key" and "the key of this request was withdrawn" in error["message"]
    assert "data: [DONE]" not in rest
    path.write_text("cid: {key: cid-key}\nnew: {key: new-key}\n")
    assert post(server, "bob").status_code == 401 and post(server, "ann").status_code == 401
    assert post(server, "cid").status_code == 200 and post(server, "new").status_code == 200
    log = path.with_name("log.jsonl")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    stream = next(line for line in told if line.get("stream"))
    assert (stream["key"], stream["code"], stream["status"]) == ("bob", "invalid_api_key", 200)
    assert {"key": "cid"}.items() <= told[-2].items() or {"key": "cid"}.items() <= told[-1].items()
    assert "-key" not in log.read_text()


def test_a_file_that_is_wrong_changes_nothing(server: Server, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("ann: [")
    assert post(server, "cid").status_code == 200
    assert "line 1 is not YAML; the keys stay as they were" in caplog.text and "ann: [" not in caplog.text
    path.unlink()
    assert post(server, "cid").status_code == 200
    path.write_text(KEYS.replace("cid", "dan"))
    assert post(server, "cid").status_code == 401 and post(server, "dan").status_code == 200


def test_a_clock_that_jumps_changes_nothing(
    server: Server, path: Path, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with held(server.loaded.model):
            running = pool.submit(post, server, "cid")
            server.wait_for(1, 0)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + 3e8)
            while post(server, "ann", temperature=9).status_code == 400:
                pass
            refused = post(server, "ann")
            assert refused.status_code == 429 and refused.headers["retry-after"] == "30"
            monkeypatch.setattr(time, "time", lambda: real() - 3e8)
            assert post(server, "ann").headers["retry-after"] == "30"
        assert running.result().status_code == 200
    wait_until(lambda: "200" in (path.with_name("log.jsonl")).read_text())
    told = [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]
    assert all(0 <= line["seconds"] < 3e7 for line in told)


def test_limits_that_change_take_what_was_taken(clock: None) -> None:
    account = Account(Key("ann", "0", requests_per_minute=4))
    for _ in range(3):
        account.take_request()
    account.limit(Key("ann", "0", requests_per_minute=2))
    with pytest.raises(ApiError, match="has 2 requests a minute"):
        account.take_request()
    account.limit(Key("ann", "0", requests_per_minute=10))
    assert account.headers()["x-ratelimit-remaining-requests"] == "8"
    account.limit(Key("ann", "0"))
    assert account.headers() == {}


def test_no_more_than_a_minute_is_saved(clock: None) -> None:
    bucket = Bucket(6)
    bucket.take(6)
    assert bucket.seconds_until(1) == pytest.approx(10)
    Clock.now += 15
    assert bucket.level == pytest.approx(1.5)
    Clock.now += 1e6
    assert bucket.level == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have names of keys"),
        ("- a", "must have names of keys"),
        ("ann: key", "ann must have sha256, requests_per_minute, tokens_per_minute, key"),
        ("ann: {key: k, rpm: 5}", "tokens_per_minute, key; not rpm"),
        ("ann: {}", "either key or sha256, which is: printf"),
        ("ann: {key: k, sha256: a}", "either key or sha256"),
        ("ann: {key: 5}", "ann has no key"),
        ("ann: {key: ' k'}", "ann has no key"),
        ("ann: {sha256: abc}", "not 64 hexadecimal digits"),
        ("5: {key: k}", "5 is no name"),
        ("ann: {key: k, requests_per_minute: 0}", "requests_per_minute: 0; it must be a whole number from 1"),
        ("ann: {key: k, tokens_per_minute: 1.5}", "tokens_per_minute: 1.5"),
        ("ann: {key: k}\nbob: {key: k}", "the same key for ann and bob"),
        ("ann: {key: sesame\n  x", "line 2 is not YAML"),
        ("ann: {key: a}\nann: {key: b}\n", "keys.yaml, line 2: ann stands there a second time, after line 1"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as found:
        Keys.from_file(str(path))
    assert "sesame" not in str(found.value) and "\n" not in str(found.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keys_file: .*none cannot be read"):
        read_keys(tmp_path / "none")
    with pytest.raises(UserError, match="api_key and keys_file cannot be had together"):
        ServeConfig("model", api_key="k", keys_file="f")
