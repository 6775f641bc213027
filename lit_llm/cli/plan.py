"""What a recipe needs and costs, as tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lit_llm.config import PlanConfig, UserError
from lit_llm.config.progress import track

if TYPE_CHECKING:
    from lit_llm.planning import Gpu
    from lit_llm.planning.choice import Option
    from lit_llm.planning.memory import Placement

GIB = 2**30


def plan(config: PlanConfig) -> None:
    """Print parameters, operations, memory of each strategy, the cheapest that fits, time and cost."""
    from lit_llm.planning import find_gpu
    from lit_llm.planning.choice import cheapest, every_option

    name, gpu = find_gpu(config.gpu)
    if config.gpu_memory_gib is not None:
        gpu = gpu._replace(memory_gib=config.gpu_memory_gib)
    _resolve_model(config)
    placements = _placements(config)
    limit = gpu.memory_gib * (1 - config.headroom) * GIB
    options = every_option(config, placements, limit)
    chosen = cheapest(options)
    # a file or a pipe has no width of its own
    console = Console(width=None if sys.stdout.isatty() else 160)
    _print_model(console, config)
    _print_memory(console, config, options, chosen, limit)
    console.print(_verdict(config, options, chosen, limit), soft_wrap=True, highlight=False)
    _print_cost(console, config, f"{config.gpus} x {name}", gpu, 1.0 if chosen is None else chosen.recomputation)


def _resolve_model(config: PlanConfig) -> None:
    """Give the model its shape and its vocabulary from the files that the recipe names, where they are there.

    Raises:
        UserError: the size of the vocabulary is not known.
    """
    if config.init_from is not None:
        from lit_llm.interop import read_model_config

        config.model = read_model_config(Path(config.init_from))
    config.fit_length()
    if config.model.vocab_size is not None:
        return
    folder = Path(config.data.paths[0]) / "tokenizer" if config.data.paths else None
    if folder is None or not (folder / "tokenizer.json").exists():
        where = "data.paths is empty" if folder is None else f"there is no tokenizer in {folder} yet"
        raise UserError(f"model.vocab_size is not set and {where}; add --model.vocab_size 32000, or what it will be")
    from lit_llm.tokenizer import Tokenizer

    config.model.vocab_size = Tokenizer.load(folder).vocab_size


def _placements(config: PlanConfig) -> list[Placement]:
    """The strategies to compare, from the one that exchanges least to the one that exchanges most.

    Raises:
        UserError: the batch or the model does not divide among the GPUs.
    """
    from lit_llm.data.loading.loader import micro_batch_shape
    from lit_llm.model.parallel import check_divisible
    from lit_llm.planning.memory import Placement

    gpus, tensor_parallel = config.gpus, config.trainer.tensor_parallel_size
    rows, accumulation = micro_batch_shape(config.data.batch_size, config.data.micro_batch_size, gpus)
    whole = Placement("one device" if gpus == 1 else "ddp", "replicas", gpus, rows, accumulation)
    if gpus == 1 and not config.trainer.offload:
        return [whole]
    placements = [whole, Placement("fsdp", "fsdp", gpus, rows, accumulation)]
    if tensor_parallel > 1:
        check_divisible(config.model, tensor_parallel)
        if gpus % tensor_parallel:
            raise UserError(f"trainer.tensor_parallel_size {tensor_parallel} does not divide num_gpus {gpus}")
        shares = gpus // tensor_parallel
        rows_there, steps = micro_batch_shape(config.data.batch_size, config.data.micro_batch_size, shares)
        name = f"fsdp x tp {tensor_parallel}"
        placements.append(Placement(name, "fsdp", shares, rows_there, steps, tensor_parallel))
    for stage in (1, 2, 3):
        placements.append(Placement(f"deepspeed {stage}", "deepspeed", gpus, rows, accumulation, stage=stage))
    return placements


def _print_model(console: Console, config: PlanConfig) -> None:
    from lit_llm.planning import parameters_by_part, training_flops_per_token

    parts = parameters_by_part(config.model)
    total = sum(parts.values())
    table = Table("part", "parameters", "share", title=f"model of {config.run_name}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for part, count in parts.items():
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    table.add_section()
    table.add_row("all", f"{total:,}", "")
    console.print(table)
    flops = training_flops_per_token(config.model, config.data.length)
    console.print(
        f"{flops:.4g} floating-point operations per token, forward and backward, in windows of "
        f"{config.data.length} tokens ({flops / total:.2f} per parameter)",
        soft_wrap=True,
        highlight=False,
    )


def _print_memory(
    console: Console, config: PlanConfig, options: list[Option], chosen: Option | None, limit: float
) -> None:
    header = ["strategy", "checkpointing", "rows", "weights", "gradients", "optimizer", "activations", "loss"]
    header += ["temporary", "exchange", "total", f"fits {limit / GIB:.1f}", "again"]
    title = f"GiB on each GPU at the peak of a step, {config.trainer.precision}, {config.optimizer.name}"
    table = Table(*header, *(["most rows"] if config.fit else []), title=title, title_justify="left")
    for column in table.columns[:2]:
        column.no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    shown = track(options, "fitting micro-batches", unit="choices") if config.fit else options
    for number, option in enumerate(shown):
        table.add_row(
            *_memory_row(option),
            *([_largest(config, option, limit)] if config.fit else []),
            style="bold green" if option is chosen else None if option.fits else "dim",
            end_section=number + 1 == len(options) or options[number + 1].placement != option.placement,
        )
    console.print(table)
    most = "; most rows: largest micro-batch that fits and that the batch divides into" if config.fit else ""
    console.print(
        "activations: with autocast's copies of weights; exchange: buckets and gathered weights; again: operations "
        f"that checkpointing repeats{most}",
        soft_wrap=True,
        highlight=False,
    )


def _memory_row(option: Option) -> list[str]:
    memory = option.memory
    counts = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.loss]
    counts += [memory.temporary, memory.communication, memory.total]
    again = option.recomputation - 1
    return [
        option.placement.name,
        option.checkpointing,
        str(option.placement.rows),
        *(f"{count / GIB:.2f}" for count in counts),
        "yes" if option.fits else "no",
        f"+{again:.0%}" if again > 5e-3 else "",
    ]


def _largest(config: PlanConfig, option: Option, limit: float) -> str:
    from lit_llm.planning.choice import largest_rows

    found = largest_rows(config, option.placement, option.checkpointing, limit)
    return "none" if found is None else str(found.rows)


def _verdict(config: PlanConfig, options: list[Option], chosen: Option | None, limit: float) -> str:
    """The cheapest that fits and why, in a sentence."""
    room = f"{limit / GIB:.1f} GiB ({config.headroom:.0%} of the GPU kept free)"
    if chosen is None:
        least = min(options, key=lambda option: option.memory.total)
        return (
            f"nothing fits in {room}: {least.placement.name} with checkpointing {least.checkpointing} needs least, "
            f"{least.memory.total / GIB:.1f} GiB; lower data.micro_batch_size ({least.placement.rows} here), take more "
            "or larger GPUs, or trainer.offload with fsdp"
        )
    held = f"{chosen.memory.total / GIB:.1f} of {room}"
    passed = options[: options.index(chosen)]
    if not passed:
        why = "every device has a whole copy and nothing is computed again"
    elif passed[-1].placement == chosen.placement:
        why = f"with checkpointing {passed[-1].checkpointing} it would hold {passed[-1].memory.total / GIB:.1f} GiB"
    else:
        least = min(passed, key=lambda option: option.memory.total)
        why = f"{least.placement.name} holds {least.memory.total / GIB:.1f} GiB even at checkpointing "
        why += least.checkpointing
    choice = f"{chosen.placement.name}, checkpointing {chosen.checkpointing}"
    return f"cheapest that fits: {choice}, {held}; {why}"


def _print_cost(console: Console, config: PlanConfig, gpus: str, gpu: Gpu, recomputation: float) -> None:
    from lit_llm.planning.cost import TOKENS_PER_PARAMETER, chinchilla_steps, training_cost

    title = f"time on {gpus} at {config.mfu:.0%} of {gpu.peak_flops / 1e12:,.0f} TFLOP/s"
    if config.price is not None:
        title += f", {config.price:g} per GPU-hour"
    header = [
        "run",
        "steps",
        "tokens",
        "operations",
        "hours",
        "GPU-hours",
        *(["cost"] if config.price is not None else []),
    ]
    table = Table(*header, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    runs = {
        "as the recipe has it": config.trainer.max_steps,
        f"Chinchilla-optimal ({TOKENS_PER_PARAMETER} tokens per parameter)": chinchilla_steps(config),
    }
    for name, steps in runs.items():
        cost = training_cost(config, gpu.peak_flops, steps, recomputation)
        row = [name, f"{cost.steps:,}", f"{cost.tokens / 1e9:,.2f} B", f"{cost.flops:.3g}"]
        row += [f"{cost.hours:,.1f}", f"{cost.gpu_hours:,.1f}"]
        table.add_row(*row, *[] if cost.price is None else [f"{cost.price:,.2f}"])
    console.print(table)
    for note in _notes(config):
        console.print(f"note: {note}", soft_wrap=True, highlight=False)


def _notes(config: PlanConfig) -> list[str]:
    """What the figures leave out for this recipe."""
    notes = []
    if config.trainer.compile:
        notes.append("trainer.compile is on: memory is that of eager blocks, and compiled ones keep less")
    if config.trainer.precision == "32-true":
        notes.append("trainer.precision is 32-true: mfu is a share of the bf16 peak, which float32 stays far below")
    return notes
