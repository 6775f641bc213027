"""Training speed and memory of the `llama` block beside transformers' Llama of the same shape, in one run.

    python experiments/benchmarks/throughput.py            # some 10 minutes on two cores
    python experiments/benchmarks/throughput.py --quick    # tiny shapes, to see that it runs
    python experiments/benchmarks/throughput.py --device cuda --shapes 124m 350m 1b --lengths 1024 4096 --rows 8 \
        --precisions bf16 --modes eager eager+full compiled compiled+full    # on a GPU

Each side takes whole training steps (forward, loss, backward, clipping, fused AdamW) on the same random tokens, in
turns, so that a busy machine slows both; the figure is the median step. Memory is the peak above what the process held
before the model was built, in a process of its own. bf16 is autocast on float32 weights on both sides. A mode says
whether both sides are compiled (ours block by block) and which activations are kept (transformers knows "full" alone).
Each case is printed as it ends, and one that fails, for want of memory mostly, is named and left out, so that neither
that nor a time limit costs the others. The last line of the output is JSON: `ratio` (ours / transformers, tokens per
second), `memory_ratio`, and each side's `share_of_matmul_ceiling` (counted model FLOPs over those of the fastest
product found around the case: MFU), by model/precision/length/mode; and `failed`, the cases left out, with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from memory import peak_mib
from peer_llama import peer_llama
from reporting import print_report

from lit_llm.config import ModelConfig, OptimizerConfig, PretrainConfig, TrainerConfig, preset
from lit_llm.model import Decoder
from lit_llm.model.parallel import arrange
from lit_llm.objectives import linear_cross_entropy
from lit_llm.optimization import build_optimizer
from lit_llm.planning import count_parameters, training_flops_per_token

SHAPES = {
    "10m": {"name": "llama-10m", "vocab_size": 8192},
    "50m": {"name": "llama-50m", "vocab_size": 16384},
    "124m": {"name": "llama-10m", "vocab_size": 50304, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "350m": {"name": "llama-10m", "vocab_size": 50304, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "1b": {"name": "llama3.2-1b"},
    "tiny": {"name": "llama-10m", "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "num_heads": 2},
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
MODES = ("eager", "eager+full", "eager+selective", "compiled", "compiled+full", "compiled+selective")


def shape_of(name: str, length: int) -> ModelConfig:
    """The architecture, with room for rows of `length`."""
    return preset(**SHAPES[name], max_position_embeddings=max(length, 1024))


def our_step(config: ModelConfig, tokens: torch.Tensor, dtype: torch.dtype | None, mode: str) -> Callable[[], None]:
    """A training step of this package's decoder."""
    model = Decoder(config).to(tokens.device)
    compiled, _, kept = mode.partition("+")
    arrange(model, TrainerConfig(compile=compiled == "compiled", activation_checkpointing=kept or "none"), None)
    optimizer = build_optimizer(model, OptimizerConfig())
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    def loss() -> torch.Tensor:
        total = model(
            inputs,
            head=lambda hidden, head: linear_cross_entropy(
                hidden.flatten(0, 1), head.weight, targets, chunk_tokens=PretrainConfig().loss_chunk(inputs.device.type)
            ),
        )
        return total / targets.numel()

    return _step(loss, model, optimizer, tokens.device.type, dtype)


def their_step(config: ModelConfig, tokens: torch.Tensor, dtype: torch.dtype | None, mode: str) -> Callable[[], None]:
    """A training step of transformers' Llama with the same sizes, its loss and its default (SDPA) attention."""
    model = peer_llama(config, use_cache=False).to(tokens.device)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)
    compiled, _, kept = mode.partition("+")
    if kept:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    forward: Any = torch.compile(model) if compiled == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    # transformers shifts the labels itself
    return _step(
        lambda: forward(tokens[:, :-1], labels=tokens[:, :-1]).loss, model, optimizer, tokens.device.type, dtype
    )


def _step(
    loss: Callable[[], torch.Tensor],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    device: str,
    dtype: torch.dtype | None,
) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


SIDES = {"ours": our_step, "transformers": their_step}


class Case(NamedTuple):
    """One row of the table."""

    shape: str
    precision: str
    length: int
    mode: str


def cases(options: argparse.Namespace) -> list[Case]:
    """Every combination that was asked for."""
    return [Case(*case) for case in product(options.shapes, options.precisions, options.lengths, options.modes)]


def batch(options: argparse.Namespace, config: ModelConfig, length: int) -> torch.Tensor:
    """The same random tokens for both sides, [rows, length + 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (options.rows, length + 1), generator=generator).to(options.device)


def measure_speed(options: argparse.Namespace, case: Case) -> dict[str, float]:
    """Tokens per second of each side, steps taken in turns."""
    config = shape_of(case.shape, case.length)
    tokens = batch(options, config, case.length)
    steps = {side: make(config, tokens, PRECISIONS[case.precision], case.mode) for side, make in SIDES.items()}
    times: dict[str, list[float]] = {side: [] for side in steps}
    for number in range(options.steps + 2):
        for side, step in steps.items():
            began = time.perf_counter()
            step()
            if number >= 2:
                times[side].append(time.perf_counter() - began)
    return {side: options.rows * case.length / statistics.median(values) for side, values in times.items()}


def measure_memory(options: argparse.Namespace, case: Case, side: str) -> float:
    """Peak MiB of model, gradients, optimizer and three steps, in a fresh process."""
    fields = {
        "--memory-of": side,
        "--shapes": case.shape,
        "--precisions": case.precision,
        "--lengths": str(case.length),
        "--modes": case.mode,
        "--rows": str(options.rows),
        "--device": options.device,
    }
    command = [sys.executable, __file__, *(part for field in fields.items() for part in field)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"peak memory of {side}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def peak_of_steps(options: argparse.Namespace) -> float:
    """Peak MiB while taking three steps."""
    case, side = cases(options)[0], options.memory_of
    config = shape_of(case.shape, case.length)
    tokens = batch(options, config, case.length)
    # code is not memory of the step: optimizers import the first, and so do transformers' models
    importlib.import_module("torch._dynamo")
    if side == "transformers":
        importlib.import_module("transformers.models.llama.modeling_llama")
    return peak_mib(lambda: SIDES[side](config, tokens, PRECISIONS[case.precision], case.mode), options.device)


def matmul_ceiling(options: argparse.Namespace, case: Case) -> float:
    """GFLOP/s of the fastest matrix product that is found: a large square one, or one of the model's own shapes.

    In the arithmetic of the case; on a CPU also in float32, which is faster than bfloat16 on processors that emulate
    it, and is what both sides then use in places.
    """
    config, tokens = shape_of(case.shape, case.length), min(options.rows * case.length, 8192)
    square = 8192 if options.device == "cuda" else 1536
    narrow, wide, vocabulary = config.hidden_size, config.feedforward_size, config.vocab_size
    sizes = {
        (square, square, square),
        (tokens, narrow, narrow),
        (tokens, narrow, wide),
        (tokens, wide, narrow),
        (wide, tokens, narrow),
        (tokens, narrow, vocabulary),
    }
    dtypes = {PRECISIONS[case.precision] or torch.float32} | ({torch.float32} if options.device == "cpu" else set())
    seconds = 0.02 if options.quick else 0.5
    return max(_product_rate(size, dtype, options.device, seconds) for size in sizes for dtype in dtypes)


def _product_rate(size: tuple[int, int, int], dtype: torch.dtype, device: str, seconds: float) -> float:
    """GFLOP/s of the fastest of the products [m, k] x [k, n] that are done in `seconds`, at least five."""
    m, k, n = size
    a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    times: list[float] = []
    while len(times) < 6 or sum(times) < seconds:
        began = time.perf_counter()
        torch.nn.functional.linear(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * m * k * n / min(times[1:]) / 1e9


def report(options: argparse.Namespace) -> None:
    """Measure each case, print it as it ends, and print all of them at the end."""
    rows: list[list[str]] = []
    figures: dict[str, dict[str, Any]] = {"ratio": {}, "memory_ratio": {}, "tokens_per_second": {}, "peak_mib": {}}
    share: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    ceilings = dict.fromkeys(options.precisions, 0.0)
    for case in cases(options):
        key = "/".join(map(str, case))
        flops = training_flops_per_token(shape_of(case.shape, case.length), case.length)
        try:
            # before and after, as a shared machine is not always as fast; the greatest so far
            ceiling = matmul_ceiling(options, case)
            speed = measure_speed(options, case)
            ceilings[case.precision] = max(ceilings[case.precision], ceiling, matmul_ceiling(options, case))
            if options.device == "cuda":
                torch.cuda.empty_cache()
            memory = {side: measure_memory(options, case, side) for side in SIDES}
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            failed[key] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"{key}: left out, {failed[key]}", flush=True)
            continue
        finally:
            if options.device == "cuda":
                torch.cuda.empty_cache()
        figures["ratio"][key] = round(speed["ours"] / speed["transformers"], 3)
        figures["memory_ratio"][key] = round(memory["ours"] / memory["transformers"], 3)
        figures["tokens_per_second"][key] = {side: round(value) for side, value in speed.items()}
        figures["peak_mib"][key] = {side: round(value) for side, value in memory.items()}
        share[key] = {side: round(speed[side] * flops / 1e9 / ceilings[case.precision], 3) for side in SIDES}
        print(
            f"{key}: {speed['ours']:,.0f} tokens/s, {figures['ratio'][key]:.2f} of transformers'; "
            f"{memory['ours']:,.0f} MiB, {figures['memory_ratio'][key]:.2f} of transformers'; "
            f"{share[key]['ours']:.0%} of the ceiling",
            flush=True,
        )
        rows.append(
            [
                key,
                *(f"{speed[side]:,.0f}" for side in SIDES),
                f"{figures['ratio'][key]:.2f}",
                *(f"{memory[side]:,.0f}" for side in SIDES),
                f"{figures['memory_ratio'][key]:.2f}",
                *(f"{share[key][side]:.0%}" for side in SIDES),
            ]
        )
    print_report(
        f"training steps of {options.rows} rows on {options.device}",
        ["case", "tok/s", "theirs", "ratio", "MiB", "theirs", "ratio", "of matmul ceiling", "theirs"],
        rows,
        {
            **figures,
            "share_of_matmul_ceiling": share,
            "failed": failed,
            "matmul_gflops": {name: round(value) for name, value in ceilings.items()},
            "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["10m", "50m"], help="model sizes")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="arithmetic")
    parser.add_argument("--rows", type=int, default=8, help="rows in a step")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256], help="tokens in a row")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager"], help="compilation and checkpointing")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and two steps")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(peak_of_steps(options))
        return
    if options.quick:
        options.shapes, options.rows, options.lengths, options.steps = ["tiny"], 2, [32], 2
    torch.set_num_threads(options.threads)
    report(options)


if __name__ == "__main__":
    main()
