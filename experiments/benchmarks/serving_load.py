"""A server under load: the same answers as one at a time and how much faster, clients that leave, and its end.

    pip install httpx
    python experiments/benchmarks/serving_load.py            # some two minutes on two cores
    python experiments/benchmarks/serving_load.py --quick    # a tiny model, a dozen requests

A server of an untrained model in a process of its own, on 127.0.0.1, answers prompts of many lengths: each by itself,
and then all of them from many clients at once, and each answer must be the same text. Then clients break off streams,
and it is measured how long their places stay taken; and while texts are being written and a schema that would never end
is being compiled, SIGTERM must end it well. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from reporting import print_report

SERVE = Path(__file__).resolve().parents[1] / "serve.py"
ENDLESS = {"type": "string", "pattern": "(a|b)*a(a|b){24}"}


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """An untrained model with a tokenizer of the standard library's text."""
    from lit_llm.config import CorpusConfig, TokenizerTrainingConfig, preset
    from lit_llm.interop import save_model_folder
    from lit_llm.model import Decoder
    from lit_llm.stages.tokenizer import train_tokenizer
    from lit_llm.tokenizer import Tokenizer

    corpus = CorpusConfig(path="stdlib")
    output = str(folder / "tok")
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=options.vocab_size, output=output, max_bytes=1_000_000))
    tokenizer = Tokenizer.load(output)
    config = preset(
        "llama-10m",
        vocab_size=tokenizer.vocab_size,
        hidden_size=options.width,
        num_layers=options.layers,
        num_heads=max(2, options.width // 64),
        num_key_value_heads=None,
        intermediate_size=2 * options.width,
        max_position_embeddings=1024,
    )
    model = Decoder(config, seed=0)
    save_model_folder(folder / "load", model.config, model.state_dict(), tokenizer)


@contextmanager
def server(folder: Path, options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server's process, and a client with its address."""
    words = ["--model", str(folder), "--port", "0", "--accelerator", "cpu", "--max_batch", str(options.max_batch)]
    words += ["--max_waiting", str(options.requests), "--max_per_client", str(options.requests)]
    root = str(SERVE.parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, str(SERVE), *words], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            found = re.match(r"(http://127\.0\.0\.1:\d+)/v1 serves", line)
            if found is None:
                sys.exit("the server did not start")
            limits = httpx.Limits(max_connections=None)
            with httpx.Client(base_url=found[1], timeout=600, limits=limits) as client:
                yield process, client
        finally:
            process.kill()


def bodies(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One request for each seed, with prompts of 1 to 400 characters."""
    words = Path(__file__).read_text(encoding="utf-8")
    return [
        {
            "model": "load",
            "prompt": words[place : place + 1 + 37 * place % 400],
            "seed": place,
            "max_tokens": options.tokens // 2 + place % options.tokens,
        }
        for place in range(options.requests)
    ]


def answered(client: httpx.Client, body: dict[str, Any]) -> tuple[str, int]:
    """The text of a request and its tokens."""
    response = client.post("/v1/completions", json=body).raise_for_status().json()
    return response["choices"][0]["text"], response["usage"]["completion_tokens"]


def compare(client: httpx.Client, options: argparse.Namespace) -> dict[str, Any]:
    """All requests one at a time, and together."""
    asked = bodies(options)
    began = time.perf_counter()
    alone = [answered(client, body) for body in asked]
    between = time.perf_counter()
    with ThreadPoolExecutor(options.clients) as pool:
        together = list(pool.map(lambda body: answered(client, body), asked))
    ended = time.perf_counter()
    tokens = sum(count for _, count in alone)
    return {
        "requests": len(asked),
        "same_texts": sum(one == other for one, other in zip(alone, together, strict=True)),
        "tokens_per_second": {"alone": tokens / (between - began), "together": tokens / (ended - between)},
        "gain": (between - began) / (ended - between),
    }


def leave(client: httpx.Client, options: argparse.Namespace) -> list[float]:
    """Seconds from when clients break off their streams until all places are free, some times."""
    body = {"model": "load", "prompt": "def ", "max_tokens": 900, "stream": True, "seed": 0}
    seconds = []
    for _ in range(options.disconnects):
        with ExitStack() as streams:
            for _ in range(options.max_batch):
                response = streams.enter_context(client.stream("POST", "/v1/completions", json=body))
                next(response.iter_lines())
        began = time.perf_counter()
        while running(client):
            if time.perf_counter() - began > 60:
                sys.exit("places of clients that left stay taken")
        seconds.append(time.perf_counter() - began)
    return seconds


def running(client: httpx.Client) -> int:
    """Requests that have a place."""
    return client.get("/health").json()["running"]


def end(process: subprocess.Popen[str], client: httpx.Client, options: argparse.Namespace) -> dict[str, Any]:
    """SIGTERM while a text is written and a schema is compiled: what each client is told, and how long it takes."""
    form = {"type": "json_schema", "json_schema": {"name": "endless", "schema": ENDLESS}}
    text = {"model": "load", "prompt": "def ", "max_tokens": options.tokens, "seed": 0}
    with ThreadPoolExecutor(2) as pool:
        endless = pool.submit(client.post, "/v1/completions", json={**text, "response_format": form})
        while client.get("/health").json()["compiling"] == 0:
            if endless.done():
                sys.exit(endless.result().text)
        written = pool.submit(client.post, "/v1/completions", json=text)
        while not (running(client) or written.done()):
            pass
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        return {
            "seconds_to_end": time.perf_counter() - began,
            "status": status,
            "status_of_text": written.result().status_code,
            "status_of_schema": endless.result().status_code,
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and a dozen requests")
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--clients", type=int, default=48, help="requests that are sent at once")
    parser.add_argument("--max_batch", type=int, default=8)
    options = parser.parse_args()
    vars(options).update(width=256, layers=4, vocab_size=4096, tokens=64, disconnects=5)
    if options.quick:
        vars(options).update(width=64, layers=1, vocab_size=512, tokens=16, disconnects=1, requests=12, clients=12)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options)
        with server(Path(folder) / "load", options) as (process, client):
            figures = compare(client, options)
            free = leave(client, options)
            ended = end(process, client, options)
    figures |= {"seconds_to_free": statistics.median(free), **ended}
    speeds = figures["tokens_per_second"]
    rows = [
        ["same texts as alone", f"{figures['same_texts']} of {figures['requests']}"],
        ["tokens/s, one at a time", f"{speeds['alone']:.0f}"],
        ["tokens/s, together", f"{speeds['together']:.0f} ({figures['gain']:.1f} times)"],
        ["places free after clients leave", f"{figures['seconds_to_free']:.3f} s"],
        ["ended after SIGTERM", f"{figures['seconds_to_end']:.1f} s, status {figures['status']}"],
    ]
    print_report("A server under load", ["", ""], rows, figures)


if __name__ == "__main__":
    main()
