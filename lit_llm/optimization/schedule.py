"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from lit_llm.config import ScheduleConfig, UserError, default_warmup_steps


def learning_rate_factor(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """The learning rate of optimizer step `step` (the first is 0) as a share of its peak.

    Warm-up is linear: step i has (i + 1) / warmup_steps, so the first step is not lost at rate 0 and step
    warmup_steps - 1 has the peak. Step warmup_steps still has it, and from there:

    - "cosine": half a cosine from the peak to min_ratio at the end of the run.
    - "linear": straight from the peak to min_ratio at the end of the run.
    - "wsd": the peak until round(decay_fraction * max_steps) steps are left, then straight to min_ratio at the end of
      the run (warm-up-stable-decay, https://arxiv.org/abs/2404.06395).
    - "constant": the peak, for ever.

    The end of the run is step max_steps, one past the last, as in transformers' schedules: with a min_ratio of 0 the
    last step is not lost at rate 0 either. All but "constant" stay at min_ratio from there on. A run no longer than
    its warm-up only warms up. Where warmup_steps is null it is that of pretraining; the stages fill their own in.
    """
    if config.name != "constant" and step >= max_steps:
        return config.min_ratio
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = default_warmup_steps("pretrain", max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.name == "constant":
        return 1.0
    start = warmup_steps  # the last step at the peak
    if config.name == "wsd":
        start = max(start, max_steps - round(config.decay_fraction * max_steps))
    progress = max(0.0, (step - start) / (max_steps - start)) if max_steps > start else 0.0
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.name == "cosine" else 1.0 - progress
    return config.min_ratio + (1.0 - config.min_ratio) * remaining


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, max_steps: int) -> LambdaLR:
    """Apply `learning_rate_factor` to every group's peak rate; step it once per optimizer step.

    Its state holds numbers only: the function is not saved with it.

    Raises:
        UserError: max_steps is below 1.
    """
    if max_steps < 1:
        raise UserError(f"trainer.max_steps is {max_steps}; it must be at least 1")
    # A plain function: LambdaLR would put the attributes of a callable object into its state.
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, config, max_steps))
