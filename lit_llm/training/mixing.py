"""Curves of a mix: the share of each corpus in the batches, and how often it has been read."""

from __future__ import annotations

from typing import Any

import lightning as L


class MixCurves(L.Callback):
    """Logs `data/share/NAME` and `data/epochs/NAME` for each corpus of a mix, where the module logs its curves.

    A share is that of the steps since the curves were logged before, counted and not as it was asked for. Both follow
    from the order of the samples and the number of the step alone, so that a resumed run writes the same.
    """

    def __init__(self) -> None:
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the run stands."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log a point, at the end of a step at which one is due."""
        step = trainer.global_step
        if step == self._step or not pl_module.logs_step(step):
            return
        self._step = step
        every = pl_module.config.trainer.log_every_n_steps
        values = trainer.datamodule.mix_curves((step - 1) // every * every, step)  # type: ignore[attr-defined]
        if values:
            pl_module.record(values, step)
