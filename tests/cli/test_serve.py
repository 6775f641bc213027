"""serve.py: from the command line to the last answer, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import letter_tokenizer, save_policy
from conftest import ROOT

from lit_llm.cli import parse
from lit_llm.cli.serve import bound_socket, make_worker, serve
from lit_llm.cli.serve_models import in_thread_of_its_own
from lit_llm.config import LoadConfig, SamplingConfig, ServeConfig, UserError
from lit_llm.generation import PrefixCache, complete
from lit_llm.generation.compiled import compiled
from lit_llm.stages.loading import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder named run with a model folder in it."""
    save_policy(tmp_path / "run" / "model", letter_tokenizer(), max_position_embeddings=1024)
    return tmp_path / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_from_the_command_line_to_the_last_answer(folder: Path, number: signal.Signals) -> None:
    """What is being written or waits when the signal comes is finished, and the process ends well."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
    more = save_policy(folder.parent / "more", letter_tokenizer(), max_position_embeddings=1024)
    words = ["--model", str(folder), "--quantize", "int8", "--port", "0", "--max_batch", "2", "--accelerator", "cpu"]
    words += ["--models", f"{{more: {more}}}"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "serve.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert select.select([process.stdout], [], [], 120)[0], "it did not start"
            line = process.stdout.readline()
            found = re.match(r"(http://127.0.0.1:\d+)/v1 serves run \(0.0M parameters, quantized to int8, ", line)
            assert found, line + process.stderr.read()
            assert line.endswith(f"chat page: {found[1]}/; and also more (loaded when it is asked for)\n")
            (more / "config.json").touch()
            ask_more = {"model": "more", "prompt": "b", "max_tokens": 1}
            refused = httpx.post(f"{found[1]}/v1/completions", json=ask_more, timeout=60)
            assert refused.status_code == 503 and "SIGHUP has it read them anew" in refused.text
            process.send_signal(signal.SIGHUP)
            while (answer := httpx.post(f"{found[1]}/v1/completions", json=ask_more, timeout=60)).status_code == 503:
                time.sleep(0.02)
            assert answer.status_code == 200 and answer.json()["model"] == "more"
            model = httpx.get(f"{found[1]}/v1/models").json()["data"][0]
            assert (model["id"], model["quantize"], model["context_length"]) == ("run", "int8", 1024)
            drain_under_load(httpx, found[1], process, number, folder)
            assert process.wait(30) == 0
            said = process.stderr.read()
            assert "int8 against the full model" in said and "Traceback" not in said
            assert "more has been read anew" in said
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{found[1]}/health")
        finally:
            process.kill()


def drain_under_load(
    httpx: Any, url: str, process: subprocess.Popen[str], number: signal.Signals, folder: Path
) -> None:
    """A signal while two texts are written, others wait and a schema is compiled: each text is what it is alone."""
    ends = {str(token): -100 for token in range(256, 271)}
    asked = [
        {"model": "run", "prompt": [70 + seed], "max_tokens": 120 - seed, "stream": seed % 2 == 0, "seed": seed}
        for seed in range(10)
    ]

    def text_of(body: dict[str, Any]) -> str:
        with httpx.Client(base_url=url, timeout=300) as client:
            answer = client.post("/v1/completions", json={**body, "logit_bias": ends})
        assert answer.status_code == 200, answer.text
        if not body["stream"]:
            assert answer.json()["choices"][0]["finish_reason"] == "length"
            return answer.json()["choices"][0]["text"]
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]" and '"finish_reason":"length"' in events[-2]
        return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])

    with endless_schema(httpx, url) as schema, ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(text_of, body) for body in asked]
        while (told := httpx.get(f"{url}/health").json())["running"] + told["waiting"] < len(asked):
            assert not all(answer.done() for answer in answers), answers[0].result()
        assert (told["running"], told["waiting"]) == (2, 8)
        process.send_signal(number)
        with suppress(httpx.TransportError):  # or it has ended already
            while (late := httpx.post(f"{url}/v1/completions", json=asked[1], timeout=60)).status_code == 200:
                assert late.json()["choices"][0]["finish_reason"] == "length"
            assert late.status_code == 503 and late.json()["error"]["code"] == "draining"
        assert schema.result().status_code == 503 and "the server is ending" in schema.result().text
        texts = [answer.result() for answer in answers]
    loaded = load(LoadConfig(str(folder), quantize="int8", accelerator="cpu"))
    bias = {int(token): value for token, value in ends.items()}
    for body, text in zip(asked, texts, strict=True):
        sampling = SamplingConfig(
            temperature=1.0, seed=body["seed"], max_new_tokens=body["max_tokens"], logit_bias=bias
        )
        assert text == complete(loaded.model, [body["prompt"]], sampling, tokenizer=loaded.tokenizer)[0].text


@contextmanager
def endless_schema(httpx: Any, url: str) -> Iterator[Future[Any]]:
    """A request whose schema is being compiled, for longer than a server may take to end."""
    pytest.importorskip("outlines_core", reason="the extra constrained is not installed")
    schema = {"type": "string", "pattern": "(a|b)*a(a|b){24}"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "run", "prompt": "b", "response_format": form}
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=60)
        while httpx.get(f"{url}/health").json()["compiling"] == 0:
            assert not request.done(), request.result().text
        yield request


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "uvicorn":
        pytest.importorskip("fastapi", reason="the extra serve is not installed")
    with pytest.raises(UserError, match=rf"the package {package}; install it with: pip install 'lit-llm\[serve\]'"):
        serve(ServeConfig("nowhere"))


def test_a_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
            bound_socket("127.0.0.1", port)
    with bound_socket("127.0.0.1", 0) as free:
        assert free.getsockname()[1] > 0


def test_a_context_beyond_the_models(folder: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    with pytest.raises(UserError, match="max_length is 4096; the model's context is 1024 tokens"):
        serve(ServeConfig(str(folder), port=0, max_length=4096))


def test_the_prefix_cache_is_as_large_as_asked_or_as_is_sensible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    loaded = load(ServeConfig(str(folder)))

    def mib(size: int | None, **options: Any) -> float:
        cache = make_worker(ServeConfig(str(folder), prefix_cache_mib=size, **options), loaded).prefix_cache
        return 0.0 if cache is None else cache.most_pages * cache.page_bytes / 2**20

    assert mib(0) == 0.0
    assert 1.9 < mib(2) <= 2.0
    # 16 batches of two texts of 512 tokens, and an eighth of a small machine
    assert mib(None, max_batch=2, max_length=512) == PrefixCache.mib_for(loaded.model, 16 * 2 * 512)
    monkeypatch.setattr("lit_llm.stages.prefix_cache.memory_gib", lambda: 8 / 1024)
    assert 0.9 < mib(None) <= 1.0
    monkeypatch.setattr("lit_llm.stages.prefix_cache.memory_gib", lambda: 0.0)
    assert mib(None) == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_everything_is_compiled_before_the_first_request(tmp_path: Path) -> None:
    folder = save_policy(tmp_path, letter_tokenizer(), num_layers=1)
    config = ServeConfig(str(folder), compile=True, max_batch=2)
    loaded = load(config, compile=True)
    worker = make_worker(config, loaded)
    worker.start()
    worker.stop()
    assert sorted(compiled(loaded.model)._steps) == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_waiting": -1}, "max_waiting is -1"),
        ({"max_length": 1}, "max_length is 1"),
        ({"prefix_cache_mib": -1}, r"prefix_cache_mib is -1; it must be at least 0 \(none\), or null"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"default_max_tokens": 0}, "default_max_tokens is 0"),
        ({"port": 70000}, "port is 70000; it must be from 0 to 65535"),
        ({"api_key": ""}, "api_key is empty"),
        ({"api_key_file": ""}, "api_key_file is empty"),
        ({"api_key": "k", "api_key_file": "f"}, "api_key and api_key_file cannot be had together"),
        ({"allowed_hosts": ["http://a.org"]}, "allowed_hosts has 'http://a.org'; give names alone"),
        ({"max_per_client": 0}, "max_per_client is 0"),
        ({"read_timeout": 0}, "read_timeout is 0"),
        ({"read_timeout": float("nan")}, "read_timeout is nan"),
        ({"write_timeout": 0}, "write_timeout is 0"),
        ({"queue_timeout": -1}, "queue_timeout is -1"),
        ({"request_timeout": float("inf")}, "request_timeout is inf"),
        ({"drain_timeout": 0}, "drain_timeout is 0"),
        ({"keys_file": ""}, "keys_file is empty"),
        ({"request_log": ""}, "request_log is empty"),
        ({"name": ""}, "name is empty"),
        ({"quantize": "int3"}, "quantize is 'int3'"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServeConfig(**options)


def test_options_are_read_from_the_command_line() -> None:
    words = "--model checkpoints/dpo --quantize int8 --compile false --host 127.0.0.1 --port 8000 --api_key k --name x"
    words += ' --allowed_hosts [a.org,"*.b.org"] --max_per_client 3 --read_timeout 2.5'
    config = parse(ServeConfig, words.split())
    access = {"allowed_hosts": ["a.org", "*.b.org"], "max_per_client": 3, "read_timeout": 2.5}
    assert config == ServeConfig("checkpoints/dpo", quantize="int8", api_key="k", name="x", **access)


def test_work_in_a_thread_of_its_own_leaves_no_threads() -> None:
    """Those of OpenMP wait for more work as long as the thread lives for which they were begun."""
    if not Path("/proc/self/task").exists() or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("threads cannot be counted here, or torch does not use OpenMP")
    number, a = torch.get_num_threads(), torch.ones(512, 512)

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def work() -> int:
        a.exp().sum()
        return count()

    torch.set_num_threads(3)  # begins threads of another kind, which stay
    before = count()
    try:
        assert in_thread_of_its_own(work) >= before + 3
        limit = time.monotonic() + 10
        while count() > before:
            assert time.monotonic() < limit
            time.sleep(0.01)
        with pytest.raises(ZeroDivisionError):
            in_thread_of_its_own(lambda: 1 // 0)
    finally:
        torch.set_num_threads(number)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_the_model_and_the_first_request_ends_it(
    number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before uvicorn has handlers of its own; the server would otherwise run for ever."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from lit_llm.serving.draining import DrainingServer

    run = DrainingServer.run

    def after_the_signal(server: DrainingServer, sockets: list[socket.socket]) -> None:
        signal.raise_signal(number)
        run(server, sockets)

    monkeypatch.setattr(DrainingServer, "run", after_the_signal)
    handlers = signal.getsignal(number)
    serve(ServeConfig(str(folder), port=0, accelerator="cpu"))
    assert signal.getsignal(number) is handlers


@pytest.mark.slow
def test_an_interrupt_while_the_model_is_read(tmp_path: Path) -> None:
    """Whatever torch is at in the thread that reads, the process ends as any other that is interrupted."""
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    sizes = {"hidden_size": 640, "num_heads": 10, "num_layers": 14, "max_position_embeddings": 64}
    folder = save_policy(tmp_path / "model", letter_tokenizer(), **sizes)
    words = [sys.executable, str(ROOT / "experiments" / "serve.py"), "--model", str(folder), "--port", "0"]
    for delay in (0.0, 0.6, 1.2):
        with subprocess.Popen(
            [*words, "--accelerator", "cpu"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        ) as process:
            assert process.stderr is not None and "texts begin with" in process.stderr.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
        assert (process.wait(), said) == (130, "error: interrupted\n") or (process.returncode, said) == (0, "")
