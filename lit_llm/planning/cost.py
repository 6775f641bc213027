"""Tokens, time and money of a run."""

from __future__ import annotations

from dataclasses import dataclass

from lit_llm.config import PlanConfig
from lit_llm.planning.counting import count_parameters, training_flops_per_token

TOKENS_PER_PARAMETER = 20
"""Training tokens for each parameter that make the best model of a given budget, roughly. Source:
Hoffmann et al. 2022 (Chinchilla), table 3."""


@dataclass(frozen=True)
class Cost:
    """What training on a number of tokens takes."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens read."""
    flops: float
    """Floating-point operations, including what checkpointing computes again."""
    hours: float
    """Hours from the first step to the last, with all GPUs at work."""
    gpu_hours: float
    """Hours times GPUs, which is what is paid for."""
    price: float | None
    """Price in the currency of `PlanConfig.price`; None where that is None."""
    kwh: float | None = None
    """Energy of the data centre, in kilowatt hours; None where the power is not known."""
    energy_price: float | None = None
    """Price of the energy; None where that of a kilowatt hour is not given."""
    kg_co2: float | None = None
    """Kilograms of CO2; None where those of a kilowatt hour are not given."""


def training_cost(
    config: PlanConfig, peak_flops: float, steps: int, recomputation: float = 1.0, watts: float | None = None
) -> Cost:
    """Work out the time and money that `steps` optimizer steps take.

    Args:
        config: the recipe, and the GPUs.
        peak_flops: of one GPU, in FLOP/s.
        steps: optimizer steps.
        recomputation: operations with activation checkpointing / without it. The time grows with it: `config.mfu`
            counts only those of the model.
        watts: power of one GPU at full load; None: it is not known.
    """
    tokens = steps * config.data.batch_size * config.data.length
    flops = tokens * training_flops_per_token(config.model, config.data.length) * recomputation
    hours = flops / (config.gpus * peak_flops * config.mfu) / 3600
    price = None if config.price is None else hours * config.gpus * config.price
    kwh = None if watts is None else hours * config.gpus * watts * config.utilisation * config.pue / 1000
    energy_price = None if kwh is None or config.kwh_price is None else kwh * config.kwh_price
    kg_co2 = None if kwh is None or config.kg_co2_per_kwh is None else kwh * config.kg_co2_per_kwh
    return Cost(steps, tokens, flops, hours, hours * config.gpus, price, kwh, energy_price, kg_co2)


def chinchilla_steps(config: PlanConfig) -> int:
    """Count the optimizer steps in which the recipe reads `TOKENS_PER_PARAMETER` tokens for each parameter."""
    tokens = TOKENS_PER_PARAMETER * count_parameters(config.model)
    return -(-tokens // (config.data.batch_size * config.data.length))
