"""Generation speed beside transformers' `generate` and llama.cpp, on the same weights and prompts, in one run.

    python experiments/benchmarks/generation.py            # 1 and 2 threads; some 10 minutes on two cores
    python experiments/benchmarks/generation.py --quick    # a tiny shape, to see that it runs
    python experiments/benchmarks/generation.py --device cuda --shapes 30m 1b --precisions bf16    # on a GPU

All sides write greedily, every text to its full length. Ours are the engine as `generate.py` runs it: as it is
("ours"), with `compile` ("compiled"), and that with int8 weights ("compiled int8", float32 arithmetic). llama.cpp
(through xllamacpp, where it is installed, at batch 1) reads the same weights as a GGUF file. All sides of a shape take
turns, so that a busy machine slows all of them, and the best run of each counts; compiling comes before. llama.cpp has
a process of its own, which is stopped while it is not its turn: in one process its waiting threads halved the speed of
the others.

The last line of the output is JSON. By shape/precision/batch/threads: `tokens_per_second` of each side (the prompt's
reading included), `ratio` (ours / transformers of the same precision; int8 / transformers in bfloat16, or in what was
measured of it, and / llama.cpp's Q8_0) and `same_ids` (share of the written tokens on which both agree up to the first
difference). By shape/side/threads: `batch_gain` (speed at the largest batch over that at the smallest) and
`share_of_bandwidth_limit` at batch 1 (weights read once for each token, at the read bandwidth measured here).
`kl_int8`: nats per token that int8 is from the full model.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import importlib.util
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peer_llama import peer_llama
from reporting import print_report

from lit_llm.config import ModelConfig, SamplingConfig, preset
from lit_llm.generation import generate
from lit_llm.interop.families import FAMILIES
from lit_llm.interop.writing import outputs_of
from lit_llm.model import Decoder
from lit_llm.model.packed_linear import pack_weights
from lit_llm.model.quality import quality
from lit_llm.model.quantization import quantize
from lit_llm.planning import count_parameters

SHAPES = {
    "10m": {"name": "llama-10m", "vocab_size": 8192},
    "30m": {"name": "llama-50m", "vocab_size": 16384, "num_layers": 7},
    "1b": {"name": "llama3.2-1b"},
    "tiny": {"name": "llama-10m", "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "num_heads": 2},
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
LLAMA_CPP = {"fp32": "F32", "int8": "Q8_0"}

Write = Callable[[list[list[int]]], list[list[int]]]


def our_side(model: Decoder, new: int, compile: bool = False) -> Write:
    """The engine."""
    sampling = SamplingConfig(max_new_tokens=new, temperature=0.0)
    return lambda prompts: generate(model, prompts, sampling, eos_id=None, compile=compile)


def their_side(model: Decoder, new: int) -> Write:
    """transformers' Llama with the weights of `model`, its default cache and (SDPA) attention."""
    from transformers import GenerationConfig

    config = model.config
    weight = model.embedding.weight
    theirs = peer_llama(config).to(weight.device, weight.dtype)
    weights = {output.name: output.make(None) for output in outputs_of(config, model.state_dict(), FAMILIES["llama"])}
    theirs.load_state_dict(weights, strict=not config.tie_word_embeddings)
    theirs.eval()
    options = GenerationConfig(do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)

    def write(prompts: list[list[int]]) -> list[list[int]]:
        tokens = torch.tensor(prompts, device=weight.device)
        with torch.inference_mode():
            written = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=options)
        return written[:, tokens.size(1) :].tolist()

    return write


def llama_cpp_side(model: Decoder, options: argparse.Namespace, threads: int, kind: str) -> Write:
    """llama.cpp with the weights of `model`, for one text at a time.

    In a process of its own, which is stopped while others write: its threads wait for work by spinning.
    """
    from tokenizers import models

    from lit_llm.interop.gguf import save_gguf
    from lit_llm.tokenizer import Tokenizer
    from lit_llm.tokenizer.alphabet import CHARACTER_TO_BYTE
    from lit_llm.tokenizer.tokenizer import byte_level

    # its text is not looked at
    vocabulary = {**CHARACTER_TO_BYTE, "ab": 256}
    tokenizer = Tokenizer(byte_level(models.BPE(vocab=vocabulary, merges=[("a", "b")]), ["<|endoftext|>"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        save_gguf(path, model.config, model.state_dict(), tokenizer, kind)
        spawn = multiprocessing.get_context("spawn")
        pipe, theirs = spawn.Pipe()
        worker = spawn.Process(target=serve_llama_cpp, args=(theirs, path, options, threads), daemon=True)
        worker.start()
        pipe.recv()  # the file is mapped, and may go
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    atexit.register(worker.kill)  # a stopped process does not hear that it is to end

    def write(prompts: list[list[int]]) -> list[list[int]]:
        os.kill(worker.pid, signal.SIGCONT)
        try:
            pipe.send(prompts)
            reply = pipe.recv()
        finally:
            os.kill(worker.pid, signal.SIGSTOP)
        if isinstance(reply, str):
            raise RuntimeError(reply)
        return []  # it tells the text alone

    return write


def serve_llama_cpp(pipe: Connection, path: Path, options: argparse.Namespace, threads: int) -> None:
    """Write texts with llama.cpp for whoever is at the other end of the pipe."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = options.prompt + options.new + 8, 1, False
    parameters.verbosity = -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    pipe.send("ready")
    while True:
        for prompt in pipe.recv():
            request = {"prompt": prompt, "n_predict": options.new, "temperature": 0.0, "ignore_eos": True}
            answer = server.handle_completions({**request, "cache_prompt": False})
            if answer["usage"]["completion_tokens"] != options.new:
                pipe.send(f"llama.cpp wrote {answer['usage']['completion_tokens']} tokens")
                return
        pipe.send(None)


def model_of(shape: str, options: argparse.Namespace, dtype: torch.dtype) -> Decoder:
    """The decoder, with weights large enough that greedy choices are clear."""
    config: ModelConfig = preset(**SHAPES[shape], rope_scaling=None, init_std=0.05)
    config.max_position_embeddings = max(options.prompt + options.new, 1024)
    return Decoder(config).to(options.device, dtype).eval()


class Sides:
    """All that is compared on one shape, by precision and name; texts are written with `threads`."""

    def __init__(self, shape: str, options: argparse.Namespace, threads: int) -> None:
        self.options = options
        self.writers: dict[tuple[str, str], Write] = {}
        self.models: dict[str, Decoder] = {}
        self.kl: float | None = None
        for precision in options.precisions:
            model = self.models[precision] = model_of(shape, options, PRECISIONS[precision])
            kind = LLAMA_CPP.get(precision)
            if kind and options.device == "cpu" and options.llama_cpp:
                self.writers[precision, "llama.cpp"] = llama_cpp_side(model, options, threads, kind)
            if precision == "int8":
                full = copy.deepcopy(model)
                quantize(model, "int8", tied_head=True)
                tokens = torch.randint(0, 512, (1, 128), generator=torch.Generator().manual_seed(1))
                self.kl = quality(full, model, tokens).kl
            else:
                # theirs is made first: it copies the weights as they are stored
                self.writers[precision, "transformers"] = their_side(model, options.new)
                compiled = copy.deepcopy(model)
                pack_weights(model)
                self.writers[precision, "ours"] = our_side(model, options.new)
                model = compiled
            if options.compile:
                self.writers[precision, "compiled"] = our_side(model, options.new, compile=True)

    def measure(self, batch: int) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
        """Best tokens per second of each side, and how far our texts agree with transformers'."""
        options = self.options
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(0, 512, (batch, options.prompt), generator=generator).tolist()
        sides = {side: write for side, write in self.writers.items() if batch == 1 or side[1] != "llama.cpp"}
        for (_, name), write in sides.items():
            if name == "compiled":
                write(prompts)  # compiles
        speeds = dict.fromkeys(sides, 0.0)
        written: dict[tuple[str, str], list[list[int]]] = {}
        for _ in range(options.runs):
            for side, write in sides.items():
                began = time.perf_counter()
                written[side] = write(prompts)
                if options.device == "cuda":
                    torch.cuda.synchronize()
                speeds[side] = max(speeds[side], batch * options.new / (time.perf_counter() - began))
        same = {}
        for (precision, name), texts in written.items():
            other = written.get((precision, "transformers"))
            if name in ("ours", "compiled") and other is not None:
                same[f"{precision} {name}"] = round(sum(map(_common, texts, other)) / (batch * options.new), 3)
        return speeds, same


def _common(one: list[int], other: list[int]) -> int:
    return next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def ratios(speeds: dict[tuple[str, str], float]) -> dict[str, float]:
    """Ours over theirs, wherever both were measured."""
    found = {}
    for (precision, name), speed in speeds.items():
        if name not in ("ours", "compiled"):
            continue
        same = precision if precision != "int8" else "bf16" if ("bf16", "transformers") in speeds else "fp32"
        for other, key in (((same, "transformers"), f"transformers {same}"), ((precision, "llama.cpp"), "llama.cpp")):
            if other in speeds:
                found[f"{name} {precision} / {key}"] = round(speed / speeds[other], 3)
    return found


def read_bandwidth(device: str) -> float:
    """Bytes per second at which memory far larger than the caches is read."""
    memory = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        memory.sum().item()
        times.append(time.perf_counter() - began)
    return memory.numel() * 4 / min(times)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["30m"], help="model sizes")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="of the weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="texts at once")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=200, help="tokens to write")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads, one measurement each")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the compiled sides out")
    parser.add_argument("--no-llama-cpp", dest="llama_cpp", action="store_false", help="leave llama.cpp out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, few tokens, one thread, nothing compiled")
    options = parser.parse_args()
    options.llama_cpp &= importlib.util.find_spec("xllamacpp") is not None
    if options.quick:
        options.shapes, options.batches, options.prompt, options.new, options.runs = ["tiny"], [1, 3], 8, 8, 2
        options.threads, options.precisions, options.compile, options.llama_cpp = [1], ["fp32"], False, False
    if "int8" in options.precisions and not options.compile:
        options.precisions.remove("int8")  # measured compiled alone
    return options


def main() -> None:
    options = parsed()
    keys = ("ratio", "tokens_per_second", "same_ids", "batch_gain", "share_of_bandwidth_limit", "read_gb_per_s")
    figures: dict[str, dict[str, Any]] = {key: {} for key in (*keys, "kl_int8")}
    rows: list[list[str]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        bandwidth = read_bandwidth(options.device)
        figures["read_gb_per_s"][str(threads)] = round(bandwidth / 1e9, 1)
        for shape in options.shapes:
            sides = Sides(shape, options, threads)
            figures["kl_int8"][shape] = sides.kl
            by_batch = {batch: sides.measure(batch) for batch in options.batches}
            for batch, (speeds, same) in by_batch.items():
                key = f"{shape}/{batch}/{threads}"
                named = {f"{precision} {name}": round(speed, 1) for (precision, name), speed in speeds.items()}
                figures["tokens_per_second"][key], figures["same_ids"][key] = named, same
                figures["ratio"][key] = ratios(speeds)
                rows += [[key, name, f"{speed:,.0f}"] for name, speed in named.items()]
                rows += [[key, name, f"{ratio:.2f}"] for name, ratio in figures["ratio"][key].items()]
            first, last = by_batch[min(by_batch)][0], by_batch[max(by_batch)][0]
            for (precision, name), speed in last.items():
                figures["batch_gain"][f"{shape}/{precision} {name}/{threads}"] = round(
                    speed / first[precision, name], 2
                )
            for (precision, name), speed in by_batch.get(1, ({}, {}))[0].items():
                size = 1 if precision == "int8" else PRECISIONS[precision].itemsize
                share = speed * size * count_parameters(sides.models[precision].config) / bandwidth
                figures["share_of_bandwidth_limit"][f"{shape}/{precision} {name}/{threads}"] = round(share, 3)
    print_report("New tokens per second", ["shape/batch/threads", "side", "tokens/s or ratio"], rows, figures)


if __name__ == "__main__":
    main()
