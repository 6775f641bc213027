"""The plan of a pretraining run, printed as tables: parameters, memory, time and cost."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lit_llm.cli.plan_costs import cost_header, cost_row, duration, energy_line
from lit_llm.cli.plan_verdict import verdict
from lit_llm.config import PlanConfig, UserError
from lit_llm.config.progress import track
from lit_llm.config.remote import is_url

if TYPE_CHECKING:
    from lit_llm.planning.choice import Option
    from lit_llm.planning.machine import Hardware
    from lit_llm.planning.memory import Placement

GIB, MIB = 2**30, 2**20
ENOUGH = 0.1
"""A step that needs less than this share of the memory is not tried with checkpointing."""


def plan(config: PlanConfig) -> None:
    """Print parameters, operations, memory of each strategy, the cheapest that fits, time and cost.

    Raises:
        UserError: the recipe cannot be run so, or GPUs are asked for where there are none and none is named.
    """
    with _without_compiler():
        _plan(config)


def _plan(config: PlanConfig) -> None:
    if config.serve is not None:
        from lit_llm.cli.plan_serving import plan_serving

        plan_serving(config, _resolve_model, _hardware)
        return
    from lit_llm.planning.choice import cheapest, every_option

    _resolve_model(config)
    hardware = _hardware(config)
    on_gpus = hardware.kind == "accelerator"
    placements_of = partial(_placements, memory=hardware.gpu.memory_gib * GIB if on_gpus else None)
    placements = placements_of(config)
    limit = hardware.gpu.memory_gib * (1 - config.headroom) * GIB
    options = every_option(config, placements, limit, hardware.kind, enough=0.0 if config.fit else ENOUGH)
    chosen = cheapest(options)
    # a file or a pipe has no width of its own; brackets and colons in the names of runs and files stand for themselves
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    memory = f"{hardware.gpu.memory_gib:.1f} GiB of memory"
    console.print(
        f"planned for {config.gpus} x {hardware.name}, {memory}"
        if on_gpus
        else f"planned for {hardware.name}, {memory}; --gpu H100 plans for a GPU",
        soft_wrap=True,
        highlight=False,
    )
    _print_model(console, config)
    _print_memory(console, config, hardware, options, chosen, limit)
    console.print(verdict(config, hardware, options, chosen, limit), soft_wrap=True, highlight=False)
    sharded = [option for option in options if option.placement.kind == "fsdp" and chosen in (None, option)]
    if sharded and on_gpus:
        from lit_llm.cli.plan_exchanges import print_exchanges

        print_exchanges(console, config, hardware, sharded[-1])
    recomputation = 1.0 if chosen is None else chosen.recomputation
    _print_cost(console, config, hardware, recomputation)
    if config.what_if:
        from lit_llm.cli.plan_what_if import print_what_if

        print_what_if(console, config, hardware, limit, placements_of)
    if config.scaling is not None:
        from lit_llm.cli.plan_scaling import scaling_lines

        for line in scaling_lines(config):
            console.print(line, soft_wrap=True, highlight=False)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Let torch count on the meta device without importing its compiler, which takes longer than a small plan.

    All that it asks of the compiler there is to stay away from some functions. Whoever asks for more gets it.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return

    class Absent(ModuleType):
        @staticmethod
        def disable(function: Any, *_: Any, **__: Any) -> Any:
            return function

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            if sys.modules.get(name) is self:
                del sys.modules[name]
            return getattr(importlib.import_module(name), attribute)

    absent = sys.modules[name] = Absent(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is absent:
            del sys.modules[name]


def _hardware(config: PlanConfig) -> Hardware:
    """Return the hardware that the plan is for; the number of this machine's GPUs is put into `config`.

    Raises:
        UserError: GPUs are asked for where there are none and none is named, or in a precision that they lack.
    """
    import torch

    from lit_llm.model.arithmetic import multiplies_bfloat16
    from lit_llm.planning.machine import named_gpu, this_machine

    if config.gpu is not None:
        hardware = named_gpu(config.gpu)
        config.settle_precision(hardware.gpu.bfloat16)
        if config.trainer.precision != "32-true" and not hardware.gpu.bfloat16:
            raise UserError(
                f"{hardware.name} has no units for bfloat16 and would emulate it; plan with --trainer.precision auto"
            )
    else:
        for option in ("num_gpus", "price", "prices", "gpu_memory_gib"):
            if getattr(config, option) is not None and not torch.cuda.is_available():
                raise UserError(f"{option} is given, but this machine has no GPU; say which is meant, as --gpu H100")
        config.settle_precision(multiplies_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
        hardware = this_machine(torch.float32 if config.trainer.precision == "32-true" else torch.bfloat16)
        if hardware.kind == "accelerator" and config.num_gpus is None and config.trainer.devices == "auto":
            config.num_gpus = hardware.devices * config.trainer.num_nodes
    # the processes of a run share a machine's memory, cores and power; a server is one process
    share = 1 if hardware.kind == "accelerator" or config.serve is not None else config.gpus // config.trainer.num_nodes
    hardware = hardware._replace(
        gpu=hardware.gpu._replace(
            memory_gib=config.gpu_memory_gib or hardware.gpu.memory_gib / share,
            peak_flops=hardware.gpu.peak_flops / share,
            tdp_watts=hardware.gpu.tdp_watts if config.watts is None else config.watts / share,
        )
    )
    if hardware.gpu.tdp_watts is None and (config.kwh_price is not None or config.kg_co2_per_kwh is not None):
        raise UserError(f"the power of {hardware.name} is not known; give --watts")
    if config.what_if and hardware.kind == "cpu":
        raise UserError("what_if compares numbers of GPUs, and here is none; say which is meant, as --gpu H100")
    if config.prices is not None:
        from lit_llm.planning import matching_gpu
        from lit_llm.planning.prices import price_of

        config.price = price_of(matching_gpu(hardware.name) or hardware.name, config.prices)
        config.prices = None  # which has done its part
    return hardware


def _resolve_model(config: PlanConfig) -> None:
    """Give the model its shape and its vocabulary from the files that the recipe names, where they are there.

    Raises:
        UserError: the size of the vocabulary is not known.
    """
    if config.init_from is not None:
        from lit_llm.interop import read_model_config
        from lit_llm.stages.loading import find_model

        config.model = read_model_config(find_model(config.init_from))
    config.fit_length()
    config.set_steps_of_tokens(float(config.data.length))
    if config.model.vocab_size is not None:
        return
    path = config.data.folders[0] if config.data.folders else None
    folder = None if path is None else Path(path) / "tokenizer"
    if path is None or folder is None or not (is_url(path) or (folder / "tokenizer.json").exists()):
        where = "data.paths is empty" if folder is None else f"there is no tokenizer in {folder} yet"
        raise UserError(f"model.vocab_size is not set and {where}; add --model.vocab_size 32000, or what it will be")
    from lit_llm.data.corpus.remote_shards import load_tokenizer

    config.model.vocab_size = load_tokenizer(path, config.data.remote).vocab_size


def _placements(config: PlanConfig, memory: float | None = None) -> list[Placement]:
    """Return the strategies to compare, from the one that exchanges least data to the one that exchanges most.

    Args:
        config: the recipe.
        memory: bytes of a GPU; None: of a CPU.

    Raises:
        UserError: the batch or the model does not divide among the GPUs.
    """
    from lit_llm.data.loading.loader import micro_batch_shape
    from lit_llm.planning.memory import Placement

    gpus, trainer, data = config.gpus, config.trainer, config.data
    tensor, context, replicas = trainer.tensor_parallel_size, trainer.context_parallel_size, trainer.fsdp_replicas
    if tensor * context == 1:
        rows, accumulation = micro_batch_shape(data.batch_size, data.micro_batch_size, gpus)
        whole = Placement("one device" if gpus == 1 else "ddp", "replicas", gpus, rows, accumulation)
        if gpus == 1 and not trainer.offload:
            return [whole]
        sharded = Placement(
            _sharded_name(gpus, replicas), "fsdp", gpus, rows, accumulation, replicas=replicas, memory=memory
        )
        stages = [Placement(f"deepspeed {n}", "deepspeed", gpus, rows, accumulation, stage=n) for n in (1, 2, 3)]
        return [whole, sharded, *stages]
    from lit_llm.model.context_parallel import check_context
    from lit_llm.model.parallel import check_divisible

    check_divisible(config.model, tensor, trainer.sequence_parallel)
    check_context(config.model, trainer)
    if gpus % (tensor * context):
        raise UserError(
            f"trainer.tensor_parallel_size {tensor} x trainer.context_parallel_size {context} does not divide num_gpus "
            f"{gpus}"
        )
    shares = gpus // (tensor * context)
    rows, accumulation = micro_batch_shape(data.batch_size, data.micro_batch_size, shares)
    name = _sharded_name(shares, replicas)
    name += f" x tp {tensor}" * (tensor > 1) + f" x cp {context}" * (context > 1)
    return [
        *_without_sharing(config, memory),
        Placement(name, "fsdp", shares, rows, accumulation, tensor, context, replicas=replicas, memory=memory),
    ]


def _without_sharing(config: PlanConfig, memory: float | None) -> list[Placement]:
    """The strategies in which each GPU reads rows of its own, where there are enough of them."""
    other = copy(config)
    other.trainer = replace(config.trainer, tensor_parallel_size=1, sequence_parallel=False, context_parallel_size=1)
    try:
        return _placements(other, memory)
    except UserError:
        return []


def _sharded_name(data_parallel: int, replicas: int) -> str:
    """Name sharding over data-parallel ranks, which `replicas` copies share.

    Raises:
        UserError: they do not divide.
    """
    if data_parallel % replicas:
        raise UserError(
            f"trainer.fsdp_replicas {replicas} does not divide the {data_parallel} data-parallel ranks (num_gpus / "
            "trainer.tensor_parallel_size / trainer.context_parallel_size)"
        )
    return "fsdp" if replicas == 1 else f"fsdp {replicas} x {data_parallel // replicas}"


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
    console: Console,
    config: PlanConfig,
    hardware: Hardware,
    options: list[Option],
    chosen: Option | None,
    limit: float,
) -> None:
    unit = "GiB" if max(option.memory.total for option in options) >= 0.1 * GIB else "MiB"
    header = ["strategy", "checkpointing", "rows", "weights", "gradients", "optimizer", "activations", "loss"]
    header += ["temporary", "exchange", "total", f"fits {limit / GIB:.1f} GiB", "again"]
    where = "each GPU" if hardware.kind == "accelerator" else "this machine"
    title = f"{unit} on {where} at the peak of a step, {config.trainer.precision}, {config.optimizer.name}"
    table = Table(*header, *(["most rows"] if config.fit else []), title=title, title_justify="left")
    for column in table.columns[:2]:
        column.no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    shown = track(options, "fitting micro-batches", unit="choices") if config.fit else options
    for number, option in enumerate(shown):
        table.add_row(
            *_memory_row(option, GIB if unit == "GiB" else MIB),
            *([_largest(config, hardware, option, limit)] if config.fit else []),
            style="bold green" if option is chosen else None if option.fits else "dim",
            end_section=number + 1 == len(options) or options[number + 1].placement != option.placement,
        )
    console.print(table)
    most = "; most rows: largest micro-batch that fits and that the batch divides into" if config.fit else ""
    if len({option.checkpointing for option in options}) == 1:
        most += f"; checkpointing is left out, as a step needs less than {ENOUGH:.0%} of the memory"
    console.print(
        "activations: with autocast's copies of weights; exchange: buckets and gathered weights; again: operations "
        f"that checkpointing repeats{most}",
        soft_wrap=True,
        highlight=False,
    )


def _memory_row(option: Option, unit: int) -> list[str]:
    memory = option.memory
    counts = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.loss]
    counts += [memory.temporary, memory.communication, memory.total]
    again = option.recomputation - 1
    return [
        option.placement.name,
        option.checkpointing,
        str(option.placement.rows),
        *(f"{count / unit:.2f}" for count in counts),
        "yes" if option.fits else "no",
        f"+{again:.0%}" if again > 5e-3 else "",
    ]


def _largest(config: PlanConfig, hardware: Hardware, option: Option, limit: float) -> str:
    from lit_llm.planning.choice import largest_rows

    found = largest_rows(config, option.placement, option.checkpointing, limit, hardware.kind)
    return "none" if found is None else str(found.rows)


def _print_cost(console: Console, config: PlanConfig, hardware: Hardware, recomputation: float) -> None:
    from lit_llm.planning.cost import TOKENS_PER_PARAMETER, chinchilla_steps, training_cost

    on_gpus = hardware.kind == "accelerator"
    peak = hardware.gpu.peak_flops
    speed = f"{peak / 1e12:,.0f} TFLOP/s" if peak >= 1e13 else f"{peak / 1e9:,.0f} GFLOP/s"
    if hardware.measured is not None:
        speed += f", the speed of {hardware.measured} matrix products measured here"
    title = f"time on {f'{config.gpus} x ' if on_gpus else ''}{hardware.name} at {config.mfu:.0%} of {speed}"
    if config.price is not None:
        title += f", {config.price:g} per GPU-hour"
    runs = {
        "as the recipe has it": config.trainer.max_steps,
        f"Chinchilla-optimal ({TOKENS_PER_PARAMETER} tokens per parameter)": chinchilla_steps(config),
    }
    costs = [training_cost(config, peak, steps, recomputation, hardware.gpu.tdp_watts) for steps in runs.values()]
    header = ["run", "steps", "tokens", "operations", "time", *cost_header(costs, on_gpus)]
    table = Table(*header, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cost in zip(runs, costs, strict=True):
        row = [name, f"{cost.steps:,}", _tokens(cost.tokens), f"{cost.flops:.3g}", duration(cost.hours)]
        table.add_row(*row, *cost_row(cost, on_gpus))
    console.print(table)
    if costs[0].kwh is not None:
        watts = config.watts or hardware.gpu.tdp_watts or 0.0  # as given, though a CPU's processes share them
        console.print(energy_line(config, watts), soft_wrap=True, highlight=False)
    for note in _notes(config, hardware):
        console.print(f"note: {note}", soft_wrap=True, highlight=False)


def _tokens(count: int) -> str:
    """Write a number of tokens in billions or millions where it is large."""
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.2f} M" if count >= 1e6 else f"{count:,}"


def _notes(config: PlanConfig, hardware: Hardware) -> list[str]:
    """Return remarks on what the figures leave out for this recipe."""
    notes = []
    if config.trainer.compiles("cuda" if hardware.kind == "accelerator" else "cpu"):
        notes.append(
            "blocks are compiled (trainer.compile): memory is that of eager blocks, and compiled ones keep less"
        )
    if config.trainer.precision == "32-true" and hardware.measured is None and hardware.gpu.bfloat16:
        notes.append("trainer.precision is 32-true: mfu is a share of the bf16 peak, which float32 stays far below")
    return notes
