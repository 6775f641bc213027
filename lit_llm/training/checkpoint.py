"""When checkpoints are written, and which are kept."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lit_llm.config import NonFiniteStep, TrainerConfig, UserError
from lit_llm.training.checkpoint_files import checkpoint_name, remove, remove_leftovers, saved_checkpoints
from lit_llm.training.checkpoint_io import AtomicCheckpointIO
from lit_llm.training.step_boundary import StepBoundary


class Interrupted(UserError):
    """The run was asked to stop, and has saved its state."""


class Preempted(Interrupted):
    """The machine is about to be taken away (SIGUSR1). The exit status tells a job script to queue the job again."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again later


class CheckpointPolicy(Checkpoint):
    """Saves at optimizer-step boundaries only: every `save_every_n_steps`, every `save_every_n_minutes`, at the end,
    on request, before a step that is not finite, and with `early_stopping_patience` after each best validation.

    Where validation is due at the same step the checkpoint is written after it, so a resumed run neither repeats nor
    misses a validation. Keeps the newest few and the one with the lowest `val/loss`; an older one goes only when a
    newer one is on the disk. Needs a Trainer with an `AtomicCheckpointIO`.

    Args:
        folder: where checkpoints go, as step_00000100.ckpt.
        config: how often, and how many to keep.

    Attributes:
        stopping: raised once the next checkpoint is on the disk; None goes on.
        ending: whether the step that is running, or the validation after it, is the last of the run although it is not
            that of `max_steps`.
    """

    def __init__(self, folder: Path, config: TrainerConfig) -> None:
        self.folder = folder
        self.config = config
        self.best_loss: float | None = None
        self.best_step: int | None = None
        self.stopping: type[Interrupted] | None = None
        self.ending = False
        self._validation_loss: tuple[int, float] | None = None
        self._last_saved = -1
        self._last_time = 0.0
        self._timed_step = -1  # the step at which the minutes were over
        self._in_flight = False
        self._boundary: StepBoundary | None = None
        self._going_back_to: StepBoundary | None = None

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest `val/loss`; None where none was saved after a validation, or it is gone."""
        path = None if self.best_step is None else self.folder / checkpoint_name(self.best_step)
        return path if path is not None and path.exists() else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and clear away what killed runs left."""
        self._last_time = time.monotonic()
        if trainer.is_global_zero:
            remove_leftovers(self.folder)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a save is due, or leave that to the end of the validation that follows."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        self._settle(trainer, wait=False)
        self._look_at_clock(trainer, step)
        if self.ending or step >= self.config.max_steps:
            trainer.should_stop = True  # makes Lightning validate once more, whatever the interval
        if not self._validates(trainer, batch_idx):
            self._reach_boundary(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the loss, and save if a save is due at this step."""
        if trainer.sanity_checking or not trainer.fit_loop.epoch_loop.global_step:
            return
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None:
            self._validation_loss = (trainer.global_step, float(loss))
        self._reach_boundary(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the last checkpoint."""
        self._settle(trainer, wait=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Finish the checkpoint that is being written; before a step that is not finite, write one if there is none."""
        together = trainer.world_size == 1 or isinstance(exception, (NonFiniteStep, Interrupted))
        if not together:  # the other ranks may be anywhere
            _io(trainer).join()
            return
        try:
            self._settle(trainer, wait=True)
            if isinstance(exception, NonFiniteStep) and self._boundary is not None:
                self._going_back_to = self._boundary
                self._save(trainer, self._boundary.step)
        except UserError as error:  # the exception that ends the run must not be lost
            print(f"error: {error}", file=sys.stderr)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the state of the last boundary into the checkpoint where the step that has begun is given up."""
        if self._going_back_to is not None:
            self._going_back_to.put_into(checkpoint)

    def _look_at_clock(self, trainer: L.Trainer, step: int) -> None:
        """Note whether the minutes since the last checkpoint are over, by the clock of rank 0."""
        minutes = self.config.save_every_n_minutes
        if minutes is not None and trainer.strategy.broadcast(time.monotonic() - self._last_time >= 60 * minutes):
            self._timed_step = step

    def _reach_boundary(self, trainer: L.Trainer) -> None:
        self._boundary = StepBoundary.take(trainer, leave_out=self)
        if self._due(trainer.global_step):
            self._save(trainer, trainer.global_step)
            if self.stopping is not None:
                raise self.stopping(f"stopped after step {trainer.global_step}; go on from there with --ckpt_path last")

    def _due(self, step: int) -> bool:
        every = self.config.save_every_n_steps
        asked = self.stopping is not None or step == self._timed_step or self._is_worth_keeping(step)
        return asked or self.ending or step >= self.config.max_steps or (every is not None and step % every == 0)

    def _is_worth_keeping(self, step: int) -> bool:
        """Whether a run that ends some validations after its best one has just had the best so far."""
        if self.config.early_stopping_patience is None or not self.config.keep_best_checkpoint:
            return False
        return self._has_loss_of(step) and (self.best_loss is None or self._validation_loss[1] < self.best_loss)

    def _has_loss_of(self, step: int) -> bool:
        return self._validation_loss is not None and self._validation_loss[0] == step

    def _validates(self, trainer: L.Trainer, batch_idx: int) -> bool:
        if not trainer.enable_validation or not sum(trainer.num_val_batches):  # which Lightning passes over, hooks too
            return False
        return trainer.should_stop or (batch_idx + 1) % int(trainer.val_check_batch or 1) == 0

    def _save(self, trainer: L.Trainer, step: int) -> None:
        """Save the present weights as those of `step`, unless that has been done."""
        self._settle(trainer, wait=True)
        if step == self._last_saved:
            return
        if self._has_loss_of(step):
            loss = self._validation_loss[1]
            if self.best_loss is None or loss < self.best_loss:
                self.best_loss, self.best_step = loss, step
        for logger in trainer.loggers:
            logger.save()  # curves up to here are on the disk before the checkpoint that takes them as done
        self._last_saved = step
        self._last_time = time.monotonic()
        trainer.save_checkpoint(self.folder / checkpoint_name(step))
        self._in_flight = True
        ending = self.stopping is not None or self._going_back_to is not None
        self._settle(trainer, wait=ending or not self.config.async_checkpoints)

    def _settle(self, trainer: L.Trainer, wait: bool) -> None:
        """Delete older checkpoints once the one that is being written is on the disk."""
        if not self._in_flight:
            return
        try:
            self._in_flight = not _io(trainer).settle(wait)
        except UserError:
            self._in_flight = False
            raise
        if not self._in_flight and trainer.is_global_zero:
            self._prune()

    def _prune(self) -> None:
        saved = saved_checkpoints(self.folder)
        keep = set(list(saved)[-self.config.keep_last_checkpoints :])
        if self.config.keep_best_checkpoint and self.best_step is not None:
            keep.add(self.best_step)
        for step in set(saved) - keep:
            remove(saved[step])

    def state_dict(self) -> dict[str, Any]:
        """Give the best loss so far and its step."""
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best loss so far."""
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]


def _io(trainer: L.Trainer) -> AtomicCheckpointIO:
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, AtomicCheckpointIO), "the Trainer must be given plugins=[AtomicCheckpointIO()]"
    return io
