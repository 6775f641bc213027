"""What `gpu.py` measures of writing texts: each piece gives its findings one by one, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch
from gpu_bench import Bench, Finding, tried
from peer_llama import peer_llama
from torch import nn

from lit_llm.config import ModelConfig, SamplingConfig
from lit_llm.generation import Engine, generate
from lit_llm.model import Decoder
from lit_llm.model.quantization import quantize


def decoding(bench: Bench, kind: str) -> Iterator[Finding]:
    """Tokens per second of one text and of eight, and the share of the memory's bandwidth that one text takes."""
    bandwidth = bench.bandwidth()
    dtype = torch.float32 if bench.tiny or kind == "float32" else torch.bfloat16
    new = 8 if bench.tiny else 200
    with torch.device(bench.device):
        model = Decoder(bench.model("1b", 512), seed=None).to(dtype).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
    if kind in ("int8", "int4"):
        quantize(model, kind, tied_head=True)
    # of a head that is not the embedding, the embedding is not read but for one row
    read = {part.data_ptr(): part.numel() * part.element_size() for part in (*model.parameters(), *model.buffers())}
    if model.head.weight.data_ptr() != model.embedding.weight.data_ptr():
        read.pop(model.embedding.weight.data_ptr())
    for compiled in (False,) if bench.tiny else (True, False):
        for rows in (1, 8):
            prompts = [[1, 2, 3 + row] * 5 for row in range(rows)]
            sampling = SamplingConfig(max_new_tokens=new, temperature=0.0)

            def measure(
                prompts: list[list[int]] = prompts, sampling: SamplingConfig = sampling, compiled: bool = compiled
            ) -> Finding:
                began = time.perf_counter()
                write = partial(generate, model, prompts, sampling, eos_id=None, compile=compiled)
                write()
                first = time.perf_counter() - began
                seconds = bench.ms(write, 2, 1) / 1e3
                speed = len(prompts) * new / seconds
                share = new / seconds * sum(read.values()) / 1e9 / bandwidth
                return {
                    "tokens_per_s": round(speed, 1),
                    "share_of_bandwidth": round(share, 3),
                    "first_s": round(first, 1),
                }

            yield tried({"kind": kind, "compiled": compiled, "rows": rows, "new": new}, measure)


def serving(bench: Bench) -> Iterator[Finding]:
    """Many texts by the engine, and by transformers' continuous batching with a model of the same sizes."""
    texts, most, new = (4, 2, 4) if bench.tiny else (128, 32, 128)
    config = bench.model("1b", 1024)
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    prompts = [[(7 * number + place) % 500 + 1 for place in range(16 + number % 48)] for number in range(texts)]
    model = Decoder(config).to(bench.device, dtype).eval()

    def write(model: Decoder, compiled: bool) -> None:
        engine = Engine(model, most, 256, compile=compiled)
        for prompt in prompts:
            engine.submit(prompt, SamplingConfig(max_new_tokens=new, temperature=0.0))
        engine.run()

    def ours(model: Decoder, compiled: bool) -> Finding:
        return {"tokens_per_s": round(texts * new / bench.ms(partial(write, model, compiled), 1, 1) * 1e3, 1)}

    finding = {"texts": texts, "at_once": most, "new": new}
    for compiled in (False,) if bench.tiny else (True, False):
        yield tried({"side": "ours", "compiled": compiled, **finding}, partial(ours, model, compiled))
    del model
    yield tried({"side": "transformers", **finding}, partial(_their_batching, bench, config, dtype, prompts, new))


def _their_batching(
    bench: Bench, config: ModelConfig, dtype: torch.dtype, prompts: list[list[int]], new: int
) -> Finding:
    from transformers import GenerationConfig

    theirs = peer_llama(config).to(bench.device, dtype)
    # as many tokens of each text as ours write: a token that there is not ends none
    options = GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=-1, pad_token_id=0)
    written: list[int] = []

    def run() -> None:
        texts = theirs.generate_batch(inputs=prompts, generation_config=options)
        written[:] = [len(text.generated_tokens) for text in texts.values()]

    ms = bench.ms(run, 1, 1)
    return {"tokens_per_s": round(sum(written) / ms * 1e3, 1), "tokens": sum(written)}
