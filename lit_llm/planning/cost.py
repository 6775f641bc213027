"""Tokens, time and money of a run."""

from __future__ import annotations

from dataclasses import dataclass

from lit_llm.config import PlanConfig
from lit_llm.planning.counting import count_parameters, training_flops_per_token

TOKENS_PER_PARAMETER = 20
"""At which a training budget is best spent, roughly. Source: Hoffmann et al. 2022 (Chinchilla), table 3."""


@dataclass(frozen=True)
class Cost:
    """What training on a number of tokens takes."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens read."""
    flops: float
    """Floating-point operations, what checkpointing computes again included."""
    hours: float
    """Time on all GPUs together."""
    gpu_hours: float
    """Time that is paid for."""
    price: float | None
    """In the currency of `PlanConfig.price`; None where that is."""


def training_cost(config: PlanConfig, peak_flops: float, steps: int, recomputation: float = 1.0) -> Cost:
    """Time and money of `steps` optimizer steps.

    Args:
        config: the recipe, and the GPUs.
        peak_flops: of one GPU, in FLOP/s.
        steps: optimizer steps.
        recomputation: operations with activation checkpointing / without it. The time grows with it: `config.mfu`
            counts only those of the model.
    """
    tokens = steps * config.data.batch_size * config.data.length
    flops = tokens * training_flops_per_token(config.model, config.data.length) * recomputation
    hours = flops / (config.gpus * peak_flops * config.mfu) / 3600
    price = None if config.price is None else hours * config.gpus * config.price
    return Cost(steps, tokens, flops, hours, hours * config.gpus, price)


def chinchilla_steps(config: PlanConfig) -> int:
    """Optimizer steps in which the recipe reads `TOKENS_PER_PARAMETER` tokens for each parameter."""
    tokens = TOKENS_PER_PARAMETER * count_parameters(config.model)
    return -(-tokens // (config.data.batch_size * config.data.length))
