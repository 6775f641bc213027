"""Generation speed of the engine beside transformers' `generate`, on the same weights and prompts, in one run.

    python experiments/benchmarks/generation.py            # some 3 minutes on two cores
    python experiments/benchmarks/generation.py --quick    # a tiny shape, to see that it runs
    python experiments/benchmarks/generation.py --device cuda --shapes 30m 1b --precisions bf16    # on a GPU

Both sides write greedily, every text to its full length; ours as `generate.py` would, weights laid out for few rows.
Runs alternate between the sides, so that a busy machine slows both, and the best run of each counts. The last line of
the output is JSON: `ratio` (ours / transformers, new tokens per second with the prompt's reading included) and
`tokens_per_second` by shape/precision/batch, `same_ids` (share of the written tokens on which both agree up to the
first difference), `batch_gain` (our speed at the largest batch over that at the smallest) and
`share_of_bandwidth_limit` at batch 1 (weights read once for each token, at the read bandwidth measured here).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from reporting import print_report

from lit_llm.config import ModelConfig, SamplingConfig, preset
from lit_llm.generation import generate, lay_out_for_few_rows
from lit_llm.interop.families import FAMILIES
from lit_llm.interop.writing import outputs_of
from lit_llm.model import Decoder
from lit_llm.planning import count_parameters

SHAPES = {
    "10m": {"name": "llama-10m", "vocab_size": 8192},
    "30m": {"name": "llama-50m", "vocab_size": 16384, "num_layers": 7},
    "1b": {"name": "llama3.2-1b"},
    "tiny": {"name": "llama-10m", "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "num_heads": 2},
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

Write = Callable[[list[list[int]]], list[list[int]]]


def our_side(model: Decoder, new: int) -> Write:
    """The engine."""
    sampling = SamplingConfig(max_new_tokens=new, temperature=0.0)
    return lambda prompts: generate(model, prompts, sampling, eos_id=None)


def their_side(model: Decoder, new: int) -> Write:
    """transformers' Llama with the weights of `model`, its default cache and (SDPA) attention."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = model.config
    weight = model.embedding.weight
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.feedforward_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.width_per_head,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    ).to(weight.device, weight.dtype)
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


def model_of(shape: str, options: argparse.Namespace, dtype: torch.dtype) -> Decoder:
    """The decoder, with weights large enough that greedy choices are clear."""
    config: ModelConfig = preset(**SHAPES[shape], rope_scaling=None, init_std=0.05)
    config.max_position_embeddings = max(options.prompt + options.new, 1024)
    return Decoder(config).to(options.device, dtype).eval()


def measure(sides: dict[str, Write], options: argparse.Namespace, config: ModelConfig, batch: int) -> dict[str, Any]:
    """Best tokens per second of each side, and how far their texts agree."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, config.vocab_size, (batch, options.prompt), generator=generator).tolist()
    speeds = dict.fromkeys(sides, 0.0)
    written: dict[str, list[list[int]]] = {}
    for _ in range(options.runs):
        for side, write in sides.items():
            began = time.perf_counter()
            written[side] = write(prompts)
            if options.device == "cuda":
                torch.cuda.synchronize()
            speeds[side] = max(speeds[side], batch * options.new / (time.perf_counter() - began))
    agreed = sum(map(_common, *written.values()))
    return {"speeds": speeds, "same_ids": agreed / (batch * options.new)}


def _common(one: list[int], other: list[int]) -> int:
    return next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


def read_bandwidth(device: str) -> float:
    """Bytes per second at which memory far larger than the caches is read."""
    memory = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        memory.sum().item()
        times.append(time.perf_counter() - began)
    return memory.numel() * 4 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["10m", "30m"], help="model sizes")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"], help="weights and arithmetic")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="texts at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to write")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny shape and few tokens")
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.batches, options.prompt, options.new, options.runs = ["tiny"], [1, 3], 8, 8, 2
    torch.set_num_threads(options.threads)

    keys = ("ratio", "tokens_per_second", "same_ids", "batch_gain", "share_of_bandwidth_limit")
    figures: dict[str, dict[str, Any]] = {key: {} for key in keys}
    rows: list[list[str]] = []
    bandwidth = read_bandwidth(options.device)
    for shape, precision in product(options.shapes, options.precisions):
        model = model_of(shape, options, PRECISIONS[precision])
        # theirs is made first: it copies the weights as they are stored
        theirs = their_side(model, options.new)
        lay_out_for_few_rows(model)
        sides = {"ours": our_side(model, options.new), "transformers": theirs}
        ours = {}
        for batch in options.batches:
            key = f"{shape}/{precision}/{batch}"
            found = measure(sides, options, model.config, batch)
            speeds = found["speeds"]
            ours[batch] = speeds["ours"]
            figures["tokens_per_second"][key] = {side: round(speed, 1) for side, speed in speeds.items()}
            figures["ratio"][key] = round(speeds["ours"] / speeds["transformers"], 3)
            figures["same_ids"][key] = round(found["same_ids"], 3)
            rows.append([key, *(f"{speed:,.0f}" for speed in speeds.values()), f"{figures['ratio'][key]:.2f}"])
        name = f"{shape}/{precision}"
        figures["batch_gain"][name] = round(ours[max(ours)] / ours[min(ours)], 2)
        if 1 in ours:
            read = count_parameters(model.config) * PRECISIONS[precision].itemsize
            figures["share_of_bandwidth_limit"][name] = round(ours[1] * read / bandwidth, 3)
    print_report(
        "New tokens per second",
        ["shape/precision/batch", "ours", "transformers", "ratio"],
        rows,
        {**figures, "read_gb_per_s": round(bandwidth / 1e9, 1)},
    )


if __name__ == "__main__":
    main()
