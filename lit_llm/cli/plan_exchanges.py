"""What GPUs exchange in a step of a plan, as a table, and how fast they must be able to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lit_llm.config import PlanConfig

if TYPE_CHECKING:
    from lit_llm.planning.choice import Option
    from lit_llm.planning.machine import Hardware

GB = 1e9  # as networks are sold


def print_exchanges(console: Console, config: PlanConfig, hardware: Hardware, option: Option) -> None:
    """Print what a GPU sends in an optimizer step of a sharded run, and what is done about accumulated gradients.

    Args:
        console: to print on.
        config: the recipe.
        hardware: one GPU.
        option: of kind "fsdp".
    """
    from lit_llm.planning.cost import training_cost
    from lit_llm.planning.exchanges import exchanges_of

    placement = option.placement
    found = exchanges_of(config, placement, option.checkpointing, hardware.kind)
    seconds = training_cost(config, hardware.gpu.peak_flops, 1, option.recomputation).hours * 3600
    title = f"sent by each GPU in a step of {placement.name}"
    table = Table("what", "among", "calls", "GB", "GB/s", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in found:
        sent = each.sent / GB
        table.add_row(each.what, f"{each.ranks} ranks", f"{each.calls:,}", f"{sent:,.3f}", f"{sent / seconds:,.1f}")
    console.print(table)
    console.print(
        f"GB/s: what each takes to be over within the {seconds:.3g} s that a step computes for", highlight=False
    )
    if placement.accumulation > 1:
        console.print(_about_gradients(config, option), soft_wrap=True, highlight=False)


def _about_gradients(config: PlanConfig, option: Option) -> str:
    from lit_llm.planning.memory import model_of_rank, reduces_every_micro_batch, sizes_of

    placement = option.placement
    size = 4 * sizes_of(model_of_rank(config, placement)).all / 2**30
    why = "" if config.trainer.reduce_every_micro_batch is None else ", as trainer.reduce_every_micro_batch says"
    if reduces_every_micro_batch(config, placement):
        how = f"sent in each of {placement.accumulation} micro-batches, as the whole would take {size:.1f} GiB"
    else:
        how = f"kept whole, {size:.1f} GiB, and sent in the last of {placement.accumulation} micro-batches"
    return f"gradients are {how}{why}"
