"""Ends of a run before its last step: the time is over, or validation no longer gets better."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L

from lit_llm.config import RunConfig, UserError
from lit_llm.data.loading.data_module import ResumableDataModule
from lit_llm.training.checkpoint import CheckpointPolicy
from lit_llm.training.checkpoint_files import step_of
from lit_llm.training.run_folder import is_written


class AlreadyEnded(Exception):
    """A resumed run has ended before, and its model and report are there; the message says why it ended."""


def check_patience(config: RunConfig, data: ResumableDataModule) -> None:
    """Refuse a patience that no validation can try.

    Raises:
        UserError: there is no validation data.
    """
    if config.trainer.early_stopping_patience is not None and not data.has_split("validation"):
        raise UserError(
            "trainer.early_stopping_patience needs validation data, and there is none; give some, or leave it out"
        )


class EndOfRun(L.Callback):
    """Ends a run after `trainer.max_time`, or once `trainer.early_stopping_patience` validations were no better.

    The step in which a run ends is validated and saved like the last of `max_steps`, and the model folder and the
    report follow. All ranks decide alike: about the time by the clock of rank 0, about the loss because it is reduced
    over them.

    The best loss and the count of validations since are part of the checkpoint, so a resumed run stops where one that
    was not interrupted would. Only validations at the interval of `val_every_n_steps` count: those that another end
    has added would not be there in an uninterrupted run. The clock of `max_time` starts anew with each process.

    Args:
        config: the run.
        policy: writes the last checkpoint; it must be a later callback than this.

    Attributes:
        reason: why the run has ended before `max_steps`, or None.
    """

    def __init__(self, config: RunConfig, policy: CheckpointPolicy) -> None:
        self.config = config
        self.policy = policy
        self.reason: str | None = None
        self.best_loss = math.inf
        self.waited = 0  # validations since the best loss
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End at once where the run that is resumed has used up its patience.

        Raises:
            AlreadyEnded: nothing is left to be written either.
        """
        if not self._out_of_patience():
            return
        if trainer.strategy.broadcast(is_written(self.config, trainer.global_step)):
            raise AlreadyEnded(
                f"{self.config.folder} ended at step {trainer.global_step}: {self._why_stopped()}; a larger "
                "--trainer.early_stopping_patience goes on"
            )
        self.reason = self._why_stopped()
        trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the step that begins the last one where the time is over."""
        seconds = self.config.trainer.max_seconds
        if seconds is None or batch_idx % trainer.accumulate_grad_batches:
            return
        if trainer.strategy.broadcast(time.monotonic() - self._started >= seconds):
            pl_module.is_last_step = self.policy.ending = True
            if trainer.global_step + 1 < trainer.max_steps:
                self.reason = f"trainer.max_time {self.config.trainer.max_time} is over; --ckpt_path last goes on"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the loss with the best one, and end the run where the patience is used up."""
        every = self.config.trainer.val_every_n_steps
        if trainer.state.fn != "fit" or trainer.sanity_checking or every is None or trainer.global_step % every:
            return
        loss = float(trainer.callback_metrics.get("val/loss", math.nan))
        if loss < self.best_loss:
            self.best_loss, self.waited = loss, 0
        else:
            self.waited += 1
        if self._out_of_patience():
            pl_module.is_last_step = self.policy.ending = trainer.should_stop = True
            if trainer.global_step < trainer.max_steps:
                self.reason = self._why_stopped()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say why the run ends."""
        if self.reason is not None and trainer.is_global_zero:
            print(f"ended at step {trainer.global_step} of {trainer.max_steps}: {self.reason}", file=sys.stderr)
            # without keep_best_checkpoint it goes as soon as the last checkpoint is on the disk
            best = self.policy.best if self.config.trainer.keep_best_checkpoint else None
            if self._out_of_patience() and best is not None and step_of(best) != trainer.global_step:
                print(f"the best is kept as {best}, which experiments/export.py --checkpoint takes", file=sys.stderr)

    def _out_of_patience(self) -> bool:
        patience = self.config.trainer.early_stopping_patience
        return patience is not None and self.waited >= patience

    def _why_stopped(self) -> str:
        times = "validation" if self.waited == 1 else f"{self.waited} validations"
        return f"val/loss has not been below {self.best_loss:.4f} in {'one ' if self.waited == 1 else ''}{times}"

    def state_dict(self) -> dict[str, Any]:
        """The best validation and how many have followed it."""
        return {"best_loss": self.best_loss, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.best_loss, self.waited = state_dict["best_loss"], state_dict["waited"]
