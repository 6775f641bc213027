"""Requests that run together, wait, go away and fail. Steps are held, so that nothing depends on time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="the package httpx is not installed")
from serving_models import Server, held, no_end, save_tiny, serving, wait_until

from lit_llm.config import SamplingConfig
from lit_llm.generation import AllowedTokens, Engine, complete
from lit_llm.serving.errors import ApiError
from lit_llm.serving.worker import Job, Text, Worker


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(save_tiny(tmp_path_factory.mktemp("wide")), max_batch=4) as server:
        yield server


@pytest.fixture
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One place, and room for one request that waits."""
    with serving(save_tiny(tmp_path_factory.mktemp("narrow")), max_batch=1, max_waiting=1) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def start(pool: ThreadPoolExecutor, server: Server, tokens: int, **options: Any) -> Future[dict[str, Any]]:
    """A request for exactly so many tokens."""
    return pool.submit(server.ask, "text", prompt=[70], max_tokens=tokens, seed=1, logit_bias=no_end(server), **options)


def test_requests_run_in_one_batch(wide: Server, pool: ThreadPoolExecutor) -> None:
    before = wide.worker.steps
    with held(wide.loaded.model):
        requests = [start(pool, wide, 20) for _ in range(4)]
        wide.wait_for(4, 0)
    texts = {request.result()["choices"][0]["text"] for request in requests}
    assert len(texts) == 1
    # one step may have begun before the last of them came
    assert wide.worker.steps - before in (20, 21)


def test_a_request_joins_a_batch_that_runs(wide: Server, pool: ThreadPoolExecutor) -> None:
    before = wide.worker.steps
    body = {"model": "tiny", "prompt": [70], "max_tokens": 50, "stream": True, "logit_bias": no_end(wide)}
    with (
        held(wide.loaded.model, after=5) as release,
        wide.client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)  # it has begun
        later = start(pool, wide, 10)  # more than there is room for before the engine stands still
        wide.wait_for(2, 0)
        release()
        assert later.result()["usage"]["completion_tokens"] == 10
        assert [*lines][-2] == "data: [DONE]"
    assert wide.worker.steps - before == 50


def test_more_than_can_wait_is_refused(narrow: Server, pool: ThreadPoolExecutor) -> None:
    with held(narrow.loaded.model):
        requests = [start(pool, narrow, 5)]
        narrow.wait_for(1, 0)
        requests.append(start(pool, narrow, 5, n=3))
        narrow.wait_for(1, 1)
        refused = narrow.post("text", prompt="b", max_tokens=5)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "too_many_requests"
    assert [request.result()["usage"]["completion_tokens"] for request in requests] == [5, 15]
    narrow.ask("text", prompt="b", max_tokens=5)


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_place(narrow: Server, stream: bool) -> None:
    body = {"model": "tiny", "prompt": [70], "max_tokens": 100, "stream": stream, "logit_bias": no_end(narrow)}
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}"
    )
    with held(narrow.loaded.model):
        port = int(narrow.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + content)
            narrow.wait_for(1, 0)
        narrow.wait_for(0, 0)
    assert narrow.ask("text", prompt=[70], max_tokens=2, logit_bias=no_end(narrow))["usage"]["completion_tokens"] == 2
    # the step that was held, if it had begun, and the two of the request after it: none of the 99 that were left
    assert narrow.worker.steps in (2, 3)


def test_a_failure_ends_what_runs_and_nothing_else(narrow: Server, pool: ThreadPoolExecutor) -> None:
    expected = narrow.expected("text", "b", seed=3, max_new_tokens=9).text
    model = narrow.loaded.model
    # the first step is held until the worker knows of both, the second one fails
    with held(model, fail=True, after=1) as release, held(model):
        release()
        options = {"prompt": "c", "max_tokens": 9, "logit_bias": no_end(narrow)}
        failing = pool.submit(narrow.post, "text", **options)
        narrow.wait_for(1, 0)
        waiting = pool.submit(narrow.ask, "text", prompt="b", seed=3, max_tokens=9)
        narrow.wait_for(1, 1)
    assert failing.result().status_code == 500
    assert failing.result().json()["error"]["type"] == "server_error"
    assert waiting.result()["choices"][0]["text"] == expected
    assert narrow.client.get("/health").json() == {
        "status": "ok",
        "preparing": 0,
        "running": 0,
        "waiting": 0,
        "compiling": 0,
    }


def test_a_failure_ends_a_stream_with_an_error(narrow: Server) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "b"}], "stream": True}
    with (
        held(narrow.loaded.model, fail=True) as release,
        narrow.client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
        release()
        rest = [*lines]
    assert "the model failed" in json.loads(rest[-2].removeprefix("data: "))["error"]["message"]
    assert "data: [DONE]" not in rest


def test_a_text_that_cannot_go_on_ends_its_own_request(wide: Server) -> None:
    """Both of its texts fail in one step; what runs beside it is what it is alone."""
    plain = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=4)
    expected = complete(wide.loaded.model, [[70]], plain)[0].ids

    class Stuck:
        def start(self) -> AllowedTokens:
            return lambda written: 1 / 0  # type: ignore[return-value]

    async def ids(job: Job) -> list[int | None]:
        return [event.token async for _, event in job.events()]

    async def ask() -> None:
        good = worker.submit([Text([70], plain)])
        bad = worker.submit([Text([71], plain, constraint=Stuck())] * 2)  # type: ignore[arg-type]
        with pytest.raises(ApiError, match="a text could not be written to its end: division by zero") as failed:
            await ids(bad)
        assert failed.value.status == 500
        assert await ids(good) == expected

    worker = Worker(lambda: Engine(wide.loaded.model, 4, tokenizer=wide.tokenizer), max_batch=4, max_waiting=4)
    worker.start()
    asyncio.run(ask())
    worker.stop()
    assert worker.failure is None and worker.steps == 12


def test_an_engine_that_cannot_start_again_ends_the_worker(wide: Server) -> None:
    made: list[Engine] = []
    told: list[bool] = []

    def make() -> Engine:
        if made:
            raise MemoryError("no room")
        made.append(Engine(wide.loaded.model, 2, tokenizer=wide.tokenizer))
        made[0].step = lambda: 1 / 0  # type: ignore[assignment,return-value]
        return made[0]

    async def ask() -> None:
        text = Text([70], SamplingConfig(max_new_tokens=3))
        with pytest.raises(ApiError) as failed:
            async for _ in worker.submit([text]).events():
                pass
        assert failed.value.status == 500
        await asyncio.to_thread(worker.stop)
        with pytest.raises(ApiError) as ended:
            worker.submit([text])
        assert ended.value.status == 503

    worker = Worker(make, max_batch=2, max_waiting=0)
    worker.on_failure = lambda: told.append(True)
    worker.start()
    asyncio.run(ask())
    assert isinstance(worker.failure, MemoryError) and told == [True]


def test_what_waits_at_the_end_is_told(wide: Server) -> None:
    async def ask() -> None:
        def submit() -> Job:
            return worker.submit([Text([70], SamplingConfig(max_new_tokens=3))])

        with held(wide.loaded.model):
            jobs = [submit()]
            wait_until(lambda: bool(worker._running))  # the thread takes no command before the step that is held
            jobs.append(submit())
            stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
            while worker._commands.qsize() < 2:
                await asyncio.sleep(0.01)
        await stopping
        for job in jobs:
            with pytest.raises(ApiError, match="the server is ending"):
                async for _ in job.events():
                    pass

    worker = Worker(lambda: Engine(wide.loaded.model, 1, tokenizer=wide.tokenizer), max_batch=1, max_waiting=5)
    worker.start()
    asyncio.run(ask())
    assert worker.failure is None
