"""The first steps of a run, made for what they show: on one device, and with nothing left behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lit_llm.config import PostTrainingConfig, PretrainConfig, RunConfig
from lit_llm.training.failures import readable_failures
from lit_llm.training.resume import ExactResume
from lit_llm.training.run import build_trainer, quiet
from lit_llm.training.strategies import set_matmul_precision

if TYPE_CHECKING:
    from lightning import Callback

VALIDATION_ROWS = 64
"""Windows or rows that a short run is validated on, where the run does not say how many."""


def shortened(run: RunConfig, folder: str, steps: int) -> Any:
    """The run, made short: on one device, without samples, and validated once on a few rows.

    Args:
        run: whose trainer.max_steps and warm-up are known, as once it has been built; both are squeezed.
        folder: that it is to land in.
        steps: that are left of it.
    """
    small = copy.deepcopy(run)
    if small.schedule.warmup_steps is not None:
        squeezed = min(steps, math.ceil(small.schedule.warmup_steps * steps / small.trainer.max_steps))
        small.schedule = replace(small.schedule, warmup_steps=squeezed)
    small.trainer = replace(
        small.trainer.on_one_device(),
        max_steps=steps,
        max_tokens=None,
        max_time=None,
        early_stopping_patience=None,
        val_every_n_steps=None,
        log_every_n_steps=1,
    )
    small.samples = replace(small.samples, prompts=[])
    small.run_name, small.output_root = "trial", folder
    small.ckpt_path, small.overwrite, small.resume_changed, small.replay = None, False, False, None
    if isinstance(small, PostTrainingConfig):
        small.epochs, small.sample_prompts = None, 0
    rows = "validation_windows" if isinstance(small, PretrainConfig) else "validation_rows"
    if getattr(small.data, rows) is None:
        setattr(small.data, rows, VALIDATION_ROWS)
    return small


def train_short(config: Any, build: Callable[[Any], Any], callbacks: Sequence[Callback]) -> dict[str, float]:
    """Train what `build` makes of a run of `shortened`; returns the last value of each curve.

    Raises:
        NonFiniteStep: a loss was not finite.
        UserError: as the stage itself.
    """
    module, data, _ = build(config)
    accumulation = data.accumulate_grad_batches(1)
    set_matmul_precision(config.trainer)
    with quiet(), readable_failures(config):
        trainer = build_trainer(
            config.trainer,
            accumulation=accumulation,
            loggers=[],
            callbacks=[ExactResume(config.seed, config.data.batch_size // accumulation), *callbacks],
        )
        trainer.fit(module, datamodule=data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
