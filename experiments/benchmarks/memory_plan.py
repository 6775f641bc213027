"""Peak memory of training steps as planned, beside what they were measured to take.

    python experiments/benchmarks/memory_plan.py            # about a minute on two cores
    python experiments/benchmarks/memory_plan.py --quick    # tiny shapes, to see that it runs

Each shape takes two whole training steps (forward, loss, backward, clipping, optimizer) in a process of its own. On
the CPU the figure is the most resident memory above what the process held before the model was built, with an allocator
that gives freed memory back at once; on CUDA it is what torch's allocator handed out at most. The plan is made on the
meta device from the same recipe. The last line of the output is JSON: `ratio` (planned / measured) by shape.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from memory import ALLOCATOR, peak_mib
from reporting import print_report

from lit_llm.config import DataConfig, OptimizerConfig, PretrainConfig, TrainerConfig, preset
from lit_llm.model import Decoder
from lit_llm.model.checkpointing import block_choices
from lit_llm.objectives import linear_cross_entropy
from lit_llm.optimization import build_optimizer
from lit_llm.planning import count_parameters
from lit_llm.planning.memory import Placement, device_memory

# architecture, rows, tokens in a row, precision, checkpointing, optimizer
SHAPES: dict[str, tuple[dict[str, Any], int, int, str, str, str]] = {
    "llama": (
        {"name": "llama-10m", "vocab_size": 8192, "hidden_size": 384, "num_layers": 8, "num_heads": 6},
        8,
        256,
        "32-true",
        "none",
        "adamw",
    ),
    "llama, full": (
        {"name": "llama-10m", "vocab_size": 8192, "hidden_size": 512, "num_layers": 10, "num_heads": 8},
        8,
        256,
        "32-true",
        "full",
        "adamw",
    ),
    "gpt2, selective": (
        {"name": "gpt2", "vocab_size": 16384, "hidden_size": 384, "num_layers": 8, "num_heads": 6, "dropout": 0.0},
        8,
        256,
        "32-true",
        "selective",
        "adamw",
    ),
    "llama, bf16-mixed": (
        {"name": "llama-10m", "vocab_size": 8192, "hidden_size": 384, "num_layers": 8, "num_heads": 6},
        8,
        256,
        "bf16-mixed",
        "none",
        "adamw",
    ),
    "modern, muon": (
        {"name": "modern-1m", "vocab_size": 4096, "hidden_size": 384, "num_layers": 6, "num_heads": 6},
        8,
        256,
        "32-true",
        "none",
        "muon",
    ),
}
STEPS = 2  # from the second on there is an optimizer state


def recipe(shape: str, quick: bool) -> PretrainConfig:
    """The run that `shape` stands for."""
    architecture, rows, length, precision, checkpointing, optimizer = SHAPES[shape]
    if quick:
        rows, length = 2, 32
        architecture = {**architecture, "hidden_size": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 512}
    return PretrainConfig(
        model=preset(**architecture),
        data=DataConfig(sequence_length=length, batch_size=rows),
        optimizer=OptimizerConfig(name=optimizer),
        trainer=TrainerConfig(precision=precision, activation_checkpointing=checkpointing),
    )


def planned_mib(config: PretrainConfig, device: str) -> float:
    """Peak of an optimizer step as planned, in MiB."""
    placement = Placement("one device", "replicas", data_parallel=1, rows=config.data.batch_size, accumulation=1)
    kind = "cpu" if device == "cpu" else "accelerator"
    return device_memory(config, placement, config.trainer.activation_checkpointing, kind).total / 2**20


def training_step(config: PretrainConfig, device: str) -> Callable[[], None]:
    """A model on `device` and its optimizer, as a function that trains them for a step."""
    model = Decoder(config.model).to(device)
    for block, choice in zip(model.blocks, block_choices(config.trainer, config.model.num_layers), strict=True):
        block.checkpointing = choice
    optimizer = build_optimizer(model, config.optimizer)
    tokens = torch.randint(config.model.vocab_size, (config.data.batch_size, config.data.sequence_length + 1))
    tokens = tokens.to(device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    def loss(hidden: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
        options = {"chunk_tokens": config.loss_chunk(targets.device.type), "softcap": config.model.logits_softcap}
        return linear_cross_entropy(hidden.flatten(0, 1), head.weight, targets, **options)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=config.trainer.precision == "bf16-mixed"):
            total = model(inputs, head=loss)
        (total / targets.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(config: PretrainConfig, device: str) -> float:
    """Most memory in MiB that the model and its steps take above what the process holds before."""
    # a first small step brings in the libraries, which would count as the model's memory otherwise
    small = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 512}
    architecture = {**SHAPES["llama"][0], **small}
    training_step(PretrainConfig(model=preset(**architecture), data=DataConfig(sequence_length=64)), device)()
    return peak_mib(lambda: training_step(config, device), device, STEPS)


def measure_apart(shape: str, device: str, quick: bool) -> float:
    """`measure`, in a fresh process."""
    command = [sys.executable, __file__, "--measure", shape, "--device", device, *["--quick"] * quick]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ALLOCATOR})
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="what is trained")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--measure", choices=SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(recipe(options.measure, options.quick), options.device))
        return
    rows, ratio, memory = [], {}, {}
    for shape in options.shapes:
        config = recipe(shape, options.quick)
        planned = planned_mib(config, options.device)
        measured = measure_apart(shape, options.device, options.quick)
        ratio[shape] = round(planned / measured, 3)
        memory[shape] = {"planned": round(planned, 1), "measured": round(measured, 1)}
        parameters = f"{count_parameters(config.model) / 1e6:.1f} M"
        settings = [config.trainer.precision, config.trainer.activation_checkpointing]
        rows.append([shape, parameters, *settings, f"{planned:,.0f}", f"{measured:,.0f}", f"{ratio[shape]:.3f}"])
    print_report(
        f"peak MiB of training steps on {options.device}",
        ["shape", "weights", "precision", "checkpointing", "planned", "measured", "ratio"],
        rows,
        {"ratio": ratio, "memory_mib": memory, "device": options.device},
    )


if __name__ == "__main__":
    main()
