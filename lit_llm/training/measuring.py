"""Measures of the model that are taken every so many steps, as curves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L

from lit_llm.model import Decoder
from lit_llm.training.resume import random_state, restore_random_state
from lit_llm.training.throughput import Throughput


class MeasureEvery(L.Callback):
    """Measures the model after every `every` steps and at the last one.

    The random states of the training are as before afterwards, so that measuring changes nothing of the run. Its time
    is taken off the clock of the speed.

    Args:
        every: optimizer steps.
        measure: gives the curves; every rank calls it with its model.
    """

    def __init__(self, every: int, measure: Callable[[Decoder], dict[str, float]]) -> None:
        self.every = every
        self.measure = measure
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the run stands."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure at the end of a step at which that is due."""
        step = trainer.global_step
        ends = step == trainer.max_steps or pl_module.is_last_step
        if step != self._step and (ends or step % self.every == 0):
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measure what a validation has ended; an interrupted run goes on and is not measured."""
        if pl_module.is_last_step and trainer.global_step != self._step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        self._step = step
        began, state = time.perf_counter(), random_state()
        try:
            values = self.measure(pl_module.model)
        finally:
            restore_random_state(state)
        pl_module.record(values, step)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.take_off(time.perf_counter() - began)
