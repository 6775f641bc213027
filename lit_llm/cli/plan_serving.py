"""What serving a model takes, printed as tables: weights by quantization, cache by tokens and texts, what fits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lit_llm.config import ModelConfig, PlanConfig, UserError
from lit_llm.stages.loading import find_model

if TYPE_CHECKING:
    import torch

    from lit_llm.planning.machine import Hardware

GIB, MIB = 2**30, 2**20
_PARTS_OF_CONTEXT = (16, 4, 1)


def plan_serving(
    config: PlanConfig, resolve: Callable[[PlanConfig], None], hardware_of: Callable[[PlanConfig], Hardware]
) -> None:
    """Print the memory of a served model.

    Args:
        config: the options; `serve` is given.
        resolve: completes the recipe's model.
        hardware_of: finds what the plan is for.

    Raises:
        UserError: there is no such model, or it is asked for longer texts than it can read.
    """
    from lit_llm.planning.serving import cache_bytes, most_texts

    name, model, dtype, stored = _model(config, resolve)
    context = model.max_position_embeddings
    lengths = config.serve_lengths or sorted({max(1, context // part) for part in _PARTS_OF_CONTEXT})
    if max(lengths) > context:
        raise UserError(f"serve_lengths has {max(lengths)}; the context of {name} is {context} tokens")
    hardware = hardware_of(config)
    memory = hardware.gpu.memory_gib * GIB * (1 - config.headroom)
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    console.print(
        f"serving {name} on {hardware.name}, {hardware.gpu.memory_gib:.1f} GiB of memory, {config.headroom:.0%} kept "
        f"free; cache in {str(dtype).removeprefix('torch.')}",
        soft_wrap=True,
        highlight=False,
    )
    table = Table("tokens of a text", "of one text", title="cache of keys and values", title_justify="left")
    for texts in config.serve_texts:
        table.add_column(f"{texts} at once", justify="right")
    for length in lengths:
        sizes = [cache_bytes(model, dtype, texts, length) for texts in config.serve_texts]
        table.add_row(f"{length:,}", amount(cache_bytes(model, dtype, 1, length)), *map(amount, sizes))
    console.print(table)
    table = Table("weights", "memory", title="texts at once (max_batch) that fit beside them", title_justify="left")
    for length in lengths:
        table.add_column(f"of {length:,} tokens", justify="right")
    for kind, size in _weights(model, dtype, stored, hardware.kind == "cpu"):
        if isinstance(size, str):
            table.add_row(kind, size, *[""] * len(lengths), style="dim")
            continue
        fitting = [most_texts(model, dtype, length, memory - size) for length in lengths]
        table.add_row(kind, amount(size), *(f"{most:,}" if most else "none" for most in fitting))
    console.print(table)
    console.print(
        "both are what the server allocates; on top come its prefix cache (prefix_cache_mib), and what a pass needs "
        "for a moment, which is less with a smaller prefill_chunk",
        soft_wrap=True,
        highlight=False,
    )


def _model(
    config: PlanConfig, resolve: Callable[[PlanConfig], None]
) -> tuple[str, ModelConfig, torch.dtype, str | None]:
    """Find the model: its name, configuration, type, and how its folder is quantized."""
    import torch

    if config.serve == "recipe":
        resolve(config)
        dtype = torch.bfloat16 if config.trainer.precision == "bf16-true" else torch.float32
        return config.run_name, config.model, dtype, None
    from lit_llm.interop import read_model_config
    from lit_llm.stages.serving_size import held_as

    folder = find_model(str(config.serve))
    model = read_model_config(folder)
    model.check_gives_text(str(folder))
    return str(config.serve), model, *held_as(folder, model, None, "none")


def _weights(model: ModelConfig, dtype: torch.dtype, stored: str | None, packed: bool) -> list[tuple[str, int | str]]:
    """List the bytes of the weights in each quantization, or why there is none."""
    from lit_llm.model.quantization import KINDS
    from lit_llm.planning.serving import weight_bytes

    if stored is not None:
        return [(f"{stored}, as stored", weight_bytes(model, dtype, stored, packed=packed))]
    plain = weight_bytes(model, dtype, packed=packed)
    found: list[tuple[str, int | str]] = [(str(dtype).removeprefix("torch."), plain)]
    for kind in KINDS:
        try:
            found.append(("--quantize " + kind, weight_bytes(model, dtype, kind, packed=packed)))
        except UserError as error:
            found.append(("--quantize " + kind, str(error)))
    return found


def amount(size: float) -> str:
    """Write a number of bytes in GiB, or in MiB where it is small."""
    return f"{size / GIB:,.2f} GiB" if size >= 0.1 * GIB else f"{size / MIB:,.2f} MiB"
