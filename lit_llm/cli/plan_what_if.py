"""The same run on other numbers of GPUs: a table, and a picture of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lit_llm.cli.plan_costs import cost_header, cost_row, duration
from lit_llm.config import PlanConfig, UserError
from lit_llm.config.files import replace_file
from lit_llm.evaluation import pages
from lit_llm.evaluation.charts import SIZE
from lit_llm.evaluation.plots import line_plot

if TYPE_CHECKING:
    from lit_llm.planning.cost import Cost
    from lit_llm.planning.machine import Hardware
    from lit_llm.planning.memory import Placement

CONSTANT = (
    "mfu is taken as the same for every number of GPUs; in fact it falls as each has fewer rows and exchanges more"
)


def print_what_if(
    console: Console,
    config: PlanConfig,
    hardware: Hardware,
    limit: float,
    placements_of: Callable[[PlanConfig], list[Placement]],
) -> None:
    """Print what each number of GPUs takes, and draw it where `config.output` asks for that.

    Args:
        console: to print on.
        config: the recipe, and the numbers.
        hardware: one GPU.
        limit: bytes that it may hold.
        placements_of: the strategies of a plan.

    Raises:
        UserError: no number of GPUs can share the batch.
    """
    found: list[tuple[int, str, Cost | None]] = []
    for number in sorted(set(config.what_if)):
        other = copy(config)
        other.num_gpus = number
        try:
            found.append((number, *_best(other, hardware, limit, placements_of(other))))
        except UserError as error:
            found.append((number, " ".join(str(error).split()), None))
    costs = [cost for _, _, cost in found if cost is not None]
    if not costs:
        raise UserError(f"none of what_if {config.what_if} can run the recipe: {found[0][1]}")
    header = ["GPUs", "how", "time", *cost_header(costs, on_gpus=True)]
    rows = [
        [
            str(number),
            how,
            *([""] * (len(header) - 2) if cost is None else [duration(cost.hours), *cost_row(cost, True)]),
        ]
        for number, how, cost in found
    ]
    table = Table(*header, title=f"what if, on {hardware.name}", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"note: {CONSTANT}", soft_wrap=True, highlight=False)
    if config.output is not None:
        _draw(config, hardware, header, rows, found)
        console.print(f"picture  {config.output}", soft_wrap=True, highlight=False)


def _best(config: PlanConfig, hardware: Hardware, limit: float, placements: list[Placement]) -> tuple[str, Cost | None]:
    """How the recipe is best run, in words, and what that costs; None where nothing fits."""
    from lit_llm.planning.choice import cheapest, every_option
    from lit_llm.planning.cost import training_cost

    options = every_option(config, placements, limit, hardware.kind)
    chosen = cheapest(options)
    if chosen is None:
        least = min(options, key=lambda option: option.memory.total)
        return f"nothing fits: {least.memory.total / 2**30:.1f} GiB at least", None
    how = f"{chosen.placement.name}, checkpointing {chosen.checkpointing}, {chosen.memory.total / 2**30:.1f} GiB"
    gpu = hardware.gpu
    return how, training_cost(config, gpu.peak_flops, config.trainer.max_steps, chosen.recomputation, gpu.tdp_watts)


def _draw(
    config: PlanConfig,
    hardware: Hardware,
    header: list[str],
    rows: list[list[str]],
    found: list[tuple[int, str, Cost | None]],
) -> None:
    can = [(number, cost) for number, _, cost in found if cost is not None]
    numbers = [float(number) for number, _ in can]
    is_log = min(numbers) < max(numbers)

    def picture(title: str, values: list[float], log_y: bool = False) -> str:
        return line_plot(
            {title: (numbers, values)},
            x_label="GPUs",
            y_label=title,
            title=f"{title} of {config.run_name} on {hardware.name}",
            log_x=is_log,
            log_y=log_y,
            size=SIZE,
        )

    pictures = [picture("hours", [cost.hours for _, cost in can], log_y=True)]
    for title, name in (("cost", "price"), ("kWh", "kwh")):
        values = [getattr(cost, name) for _, cost in can]
        if None not in values:
            pictures.append(picture(title, values))
    path = Path(str(config.output))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        replace_file(path, _stacked(pictures))
        return
    title = f"What if {config.run_name} ran on other numbers of GPUs"
    note = f"{CONSTANT[0].upper()}{CONSTANT[1:]}."
    parts = [pages.charts(pictures), pages.table(header, rows), pages.from_markdown(note)]
    replace_file(path, pages.page(title, parts))


def _stacked(pictures: list[str]) -> str:
    """One SVG on white ground with pictures below one another."""
    width, height = (math.ceil(72 * side) for side in SIZE)
    inside = "".join(
        f'<g transform="translate(0 {number * (height + 12)})">{picture}</g>' for number, picture in enumerate(pictures)
    )
    whole = len(pictures) * (height + 12)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{whole}" viewBox="0 0 {width} {whole}">'
        f'<rect width="100%" height="100%" fill="white"/><g color="#222">{inside}</g></svg>\n'
    )
