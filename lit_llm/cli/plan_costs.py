"""What a run takes, as cells of the planner's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_llm.config import PlanConfig

if TYPE_CHECKING:
    from lit_llm.planning.cost import Cost


def cost_header(costs: Sequence[Cost], on_gpus: bool) -> list[str]:
    """The columns that costs of one plan have, beside the time."""
    first = costs[0]
    return [
        *(["GPU-hours"] if on_gpus else []),
        *(["cost"] if first.price is not None else []),
        *(["kWh"] if first.kwh is not None else []),
        *(["cost of energy"] if first.energy_price is not None else []),
        *(["kg CO2"] if first.kg_co2 is not None else []),
    ]


def cost_row(cost: Cost, on_gpus: bool) -> list[str]:
    """The cells under `cost_header`."""
    return [
        *([f"{cost.gpu_hours:,.1f}"] if on_gpus else []),
        *(f"{value:,.2f}" for value in (cost.price, cost.kwh, cost.energy_price, cost.kg_co2) if value is not None),
    ]


def energy_line(config: PlanConfig, watts: float) -> str:
    """Say what the energy is worked out from."""
    return f"energy: {watts:g} W at {config.utilisation:.0%}, times a PUE of {config.pue:g}"


def duration(hours: float) -> str:
    """Write a time in hours, minutes or seconds."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"
