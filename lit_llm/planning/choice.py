"""Which way of running a recipe fits, and which of those is the cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_llm.config import PretrainConfig
from lit_llm.planning.memory import (
    CHECKPOINTING,
    Checkpointing,
    Device,
    DeviceMemory,
    Placement,
    device_memory,
    rehearsed,
)


@dataclass(frozen=True)
class Option:
    """One strategy with one checkpointing choice."""

    placement: Placement
    """The strategy, with the micro-batch that it is tried with."""
    checkpointing: Checkpointing
    """What each block keeps of its forward pass."""
    memory: DeviceMemory
    """What each device holds at the peak of a step."""
    recomputation: float
    """Operations of a step with checkpointing, divided by those without it."""
    fits: bool
    """Whether the peak is within the memory that a GPU has for it."""


def every_option(
    config: PretrainConfig,
    placements: Sequence[Placement],
    limit: float,
    device: Device = "accelerator",
    *,
    enough: float = 0.0,
) -> list[Option]:
    """Each of `placements` with each checkpointing choice, the cheapest first.

    Args:
        config: the recipe.
        placements: from the one that exchanges least to the one that exchanges most.
        limit: bytes that a device may hold.
        device: whose kernels are meant.
        enough: share of the limit; where a step of the first placement needs less, checkpointing is left out.
    """
    options = []
    plenty = device_memory(config, placements[0], "none", device).total <= enough * limit
    for placement in placements:
        plain = rehearsed(config, placement, "none", device).flops
        for checkpointing in CHECKPOINTING[:1] if plenty else CHECKPOINTING:
            memory = device_memory(config, placement, checkpointing, device)
            again = rehearsed(config, placement, checkpointing, device).flops / plain
            options.append(Option(placement, checkpointing, memory, again, memory.total <= limit))
    return options


def cheapest(options: Sequence[Option]) -> Option | None:
    """Pick the first option that fits: replicas before sharding, and within each what computes least again.

    DeepSpeed is left out: FSDP2 shards the same and needs no package.
    """
    return next((option for option in options if option.fits and option.placement.kind != "deepspeed"), None)


def largest_rows(
    config: PretrainConfig,
    placement: Placement,
    checkpointing: Checkpointing,
    limit: float,
    device: Device = "accelerator",
) -> Placement | None:
    """Find `placement` with the largest micro-batch that stays within `limit` bytes and that the batch divides into.

    Returns:
        None where not even one window fits.
    """
    share = placement.rows * placement.accumulation
    fitting = None
    for rows in (rows for rows in range(1, share + 1) if share % rows == 0):
        tried = replace(placement, rows=rows, accumulation=share // rows)
        if device_memory(config, tried, checkpointing, device).total > limit:
            break  # memory grows with the rows
        fitting = tried
    return fitting
