"""What a server tells its operators: numbers for Prometheus, a line for each request, and ids that go with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, held, no_end, save_tiny, serving, wait_until

from lit_llm.config import ServeConfig, UserError
from lit_llm.serving import metrics
from lit_llm.serving.operations import Operations
from lit_llm.serving.record import Record
from lit_llm.serving.request_log import RequestLog


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("operations"))


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    return folder.parent / "requests.jsonl"


@pytest.fixture(scope="module")
def server(folder: Path, log: Path) -> Iterator[Server]:
    with serving(folder, max_batch=2, request_log=str(log), quantize="int8") as server:
        yield server


def lines(log: Path, request: str, count: int = 1) -> list[dict[str, Any]]:
    """The lines of the requests with an id, once there are so many: they come after the answers."""

    def found() -> list[dict[str, Any]]:
        return [line for line in map(json.loads, log.read_text().splitlines()) if line["id"] == request]

    wait_until(lambda: len(found()) == count)
    return found()


class Numbers:
    """The samples of /metrics, as Prometheus's own parser reads them."""

    def __init__(self, server: Server) -> None:
        parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
        response = server.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        families = list(parser.text_string_to_metric_families(response.text))
        assert all(family.documentation for family in families)
        self.samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of what has these labels."""
        name = name if name.startswith("process_") else f"lit_llm_{name}"
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found)


def test_numbers_are_those_of_the_requests(server: Server, log: Path) -> None:
    before = Numbers(server)
    bias = no_end(server)
    done = [
        server.ask("text", prompt=[70, 71, 72], max_tokens=5, n=2, logit_bias=bias),
        server.ask("chat", messages=[{"role": "user", "content": "bcd"}], max_tokens=7, logit_bias=bias),
        server.ask("text", prompt=[70], max_tokens=1, logit_bias=bias),
    ]
    assert server.post("text", prompt="b", temperature=9).status_code == 400
    for path in ("/v1/models/tiny", "/v1/nowhere", "/elsewhere/17"):
        server.client.get(path, headers={"X-Request-Id": "numbers"})
    lines(log, "numbers", 3)
    wait_until(lambda: server.process._operations.active == set())
    after = Numbers(server)

    def more(name: str, **labels: str) -> float:
        return after(name, **labels) - (
            0 if before(name, **labels) != before(name, **labels) else before(name, **labels)
        )

    assert more("requests_total", route="/v1/completions", status="200", model="tiny") == 2
    assert more("requests_total", route="/v1/chat/completions", status="200", model="tiny") == 1
    assert more("requests_total", route="/v1/completions", status="400") == 1
    assert more("requests_total", route="/v1/models/{name:path}", status="200") == 1
    assert more("requests_total", route="other", status="404") == 2
    done.append(server.ask("vector", input=["bcd", "f"]))
    wait_until(lambda: server.process._operations.active == set())
    embedded = Numbers(server)("prompt_tokens_total", model="tiny") - after("prompt_tokens_total", model="tiny")
    assert embedded == done.pop()["usage"]["prompt_tokens"] == 6
    read, written = (sum(body["usage"][f"{kind}_tokens"] for body in done) for kind in ("prompt", "completion"))
    assert (read, written) == (3 + done[1]["usage"]["prompt_tokens"] + 1, 18)
    assert more("prompt_tokens_total", model="tiny") == read
    assert more("completion_tokens_total", model="tiny") == written
    assert more("finished_texts_total", finish_reason="length") == 4
    assert more("time_to_first_token_seconds_count", model="tiny") == 3
    assert more("time_per_output_token_seconds_count", model="tiny") == 3  # one text has no second token
    assert more("request_duration_seconds_count", route="/v1/completions") == 3
    assert 0 < more("time_to_first_token_seconds_sum") < more("request_duration_seconds_sum")
    assert more("batch_size_sum", model="tiny") == written  # each text of a step writes a token
    assert more("batch_size_bucket", le="1.0") == 8 and more("batch_size_bucket", le="2.0") == 13
    assert after("info", model="tiny", quantize="int8") == 1 and after("uptime_seconds", model="tiny") > 0
    assert after("process_resident_memory_bytes") > 1e6


def test_numbers_of_the_prefix_cache(server: Server) -> None:
    before = Numbers(server)
    for _ in range(2):
        server.ask("text", prompt=[90, *[71] * 20], max_tokens=2, logit_bias=no_end(server))
    after = Numbers(server)

    def more(name: str) -> float:
        return after(f"prefix_cache_{name}", model="tiny") - before(f"prefix_cache_{name}", model="tiny")

    found = {name: more(name) for name in ("requests", "hits", "prompt_tokens", "cached_tokens", "pages", "evictions")}
    # the first 16 of 21 tokens are a page
    assert found == {
        "requests": 2,
        "hits": 1,
        "prompt_tokens": 42,
        "cached_tokens": 16,
        "pages": 1,
        "evictions": 0,
    }
    assert after("prefix_cache_pages_in_use") == 0
    assert 0 < after("prefix_cache_bytes") < after("prefix_cache_most_bytes")


def test_numbers_of_the_moment(server: Server) -> None:
    def load() -> tuple[float, ...]:
        numbers = Numbers(server)
        return tuple(numbers(f"requests_{kind}", model="tiny") for kind in ("in_flight", "running", "waiting"))

    body = {"prompt": [70], "max_tokens": 2, "logit_bias": no_end(server)}
    with ThreadPoolExecutor(3) as pool:
        with held(server.loaded.model):
            requests = [pool.submit(server.ask, "text", **body) for _ in range(3)]
            wait_until(lambda: load() == (4, 2, 1))  # the one for the numbers is in flight as well
        assert all(request.result() for request in requests)
    wait_until(lambda: load() == (1, 0, 0))
    assert Numbers(server)("ready") == 1


def test_a_server_without_the_package_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ModuleNotFoundError("prometheus_client")

    monkeypatch.setattr("lit_llm.serving.operations.Metrics", missing)
    with serving(folder) as server:
        assert server.ask("text", prompt="b", max_tokens=2)["usage"]["total_tokens"] > 0
        response = server.client.get("/metrics")
        assert response.status_code == 404 and "pip install 'lit-llm[serve]'" in response.json()["error"]["message"]


def test_a_line_for_each_request_and_no_texts(server: Server, log: Path) -> None:
    secret = "zebra"
    body = {"messages": [{"role": "user", "content": secret}], "max_tokens": 6, "logit_bias": no_end(server)}
    headers = {"X-Request-Id": "trace-1:a/b"}
    body["model"] = "tiny"
    response = server.client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.headers["x-request-id"] == "trace-1:a/b"
    line = lines(log, "trace-1:a/b")[0]
    usage = response.json()["usage"]
    assert line["time"].endswith("+00:00") and line["seconds"] >= line["seconds_to_first_token"] > 0
    assert line["seconds_per_token"] > 0
    told = {name: value for name, value in line.items() if name != "time" and not name.startswith("seconds")}
    assert told == {
        "id": "trace-1:a/b",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "model": "tiny",
        "stream": False,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": 6,
        "finish_reasons": ["length"],
    }
    assert server.client.post("/v1/completions", json={"model": secret, "prompt": secret}).status_code == 404
    assert server.client.get(f"/v1/{secret}?q={secret}", headers={"X-Request-Id": "last"}).status_code == 404
    assert lines(log, "last")[0]["route"] == "other"
    text = log.read_text()
    assert secret not in text and response.json()["choices"][0]["message"]["content"] not in text
    assert (log.stat().st_mode & 0o777) == 0o600


def test_a_stream_that_is_left_is_logged(server: Server, log: Path) -> None:
    body = {"model": "tiny", "prompt": [70], "max_tokens": 100, "stream": True, "logit_bias": no_end(server)}
    with (
        held(server.loaded.model, after=4),
        server.client.stream("POST", "/v1/completions", json=body, headers={"X-Request-Id": "left"}) as response,
    ):
        next(response.iter_lines())
    line = lines(log, "left")[0]
    assert line["stream"] and line["finish_reasons"] == [None] and 1 <= line["completion_tokens"] < 100


@pytest.mark.parametrize("given", [None, "", "a b", "ä", "x" * 129, 'a"b'])
def test_ids_that_are_no_words_are_replaced(server: Server, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given.encode()}
    ids = {server.client.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2 and all(len(name) == 32 and name.isalnum() for name in ids)


def test_a_log_that_was_moved_is_begun_again(server: Server, log: Path) -> None:
    server.client.get("/health", headers={"X-Request-Id": "before"})
    lines(log, "before")
    moved = log.rename(log.with_name("moved.jsonl"))
    server.client.get("/health", headers={"X-Request-Id": "after"})
    wait_until(log.exists)
    assert lines(log, "after") and "after" not in moved.read_text()


def test_texts_are_logged_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    talk = [{"role": "user", "content": "b\u2028c"}]
    with serving(folder, request_log=str(path), log_texts=True) as server:
        done = server.ask("chat", messages=talk, n=2, max_tokens=5, seed=1)
        server.ask("text", prompt=["b", "c"], max_tokens=2)
        usage = server.ask("vector", input=["b", "c"])["usage"]
    chat, text, vector = map(json.loads, path.read_text().splitlines())
    assert chat["asked"] == {"messages": talk}
    assert chat["texts"] == [choice["message"]["content"] for choice in done["choices"]]
    assert text["asked"] == {"prompt": ["b", "c"]} and len(text["texts"]) == 2
    told = {"asked": {"input": ["b", "c"]}, "model": "tiny", "prompt_tokens": usage["prompt_tokens"]}
    assert told.items() <= vector.items() and "texts" not in vector and "completion_tokens" not in vector


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"request_log: .*none/log cannot be written .No such file"):
        RequestLog(str(tmp_path / "none" / "log"))
    with pytest.raises(UserError, match="log_texts has nothing to log to; give request_log"):
        ServeConfig("model", log_texts=True)


def test_a_log_that_can_no_longer_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    log, record = RequestLog(str(path)), Record("a", "GET", False)
    shutil.rmtree(path.parent)
    for _ in range(3):
        log.write(record)
    path.parent.mkdir()
    for _ in range(2):
        log.write(record)
    log.close()
    assert len(path.read_text().splitlines()) == 2
    assert caplog.messages == [
        f"request_log: {path} cannot be written (No such file or directory); requests are not logged",
        f"request_log: {path} is written again; 3 requests are missing",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_on_a_full_disk_holds_nothing_back(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    log, record = RequestLog("/dev/full"), Record("a", "GET", False)
    for _ in range(3):
        log.write(record)
    log.close()
    assert caplog.messages == [
        "request_log: /dev/full cannot be written (No space left on device); requests are not logged"
    ]
    assert capfd.readouterr().err == ""


def test_the_log_of_standard_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(folder, request_log="-") as server:
        server.client.get("/health")
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["route"] == "/health"


def test_numbers_need_no_server() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    counted = metrics.Metrics("m", {}, lambda: {"waiting": ("How many wait.", 3.0)})
    assert b'lit_llm_waiting{model="m"} 3.0' in counted.text()[0]
    assert Operations().refusal() is None
