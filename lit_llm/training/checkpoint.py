"""When checkpoints are written, how, and which one a run goes on from."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lit_llm.config import TrainerConfig, UserError

_NAME = re.compile(r"step_(\d+)\.ckpt")


class Interrupted(UserError):
    """The run was asked to stop, and has saved its state."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it when it is whole and on the disk.

    A kill or a full disk leaves the earlier checkpoints as they were. Lightning's own single-file save goes through
    a temporary folder, which on another filesystem is a copy and can be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save `checkpoint` to `path`.

        Raises:
            UserError: the file cannot be written, for instance because the disk is full.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write of its archive as a RuntimeError
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise UserError(
                f"cannot write {target}: {reason}; free some space and resume, earlier checkpoints are intact"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Load plain tensors and containers from `path`; nothing in the file is executed.

        Raises:
            UserError: the file is missing, cut short, or not a checkpoint.
        """
        if not Path(path).is_file():
            raise UserError(f"there is no checkpoint {path}")
        try:
            checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:
            reason = str(error).partition("\n")[0][:120] or type(error).__name__
            raise UserError(f"{path} is not a whole checkpoint ({reason})") from error
        if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
            raise UserError(f"{path} is not a checkpoint of a run; give one that a run of this package wrote")
        return checkpoint


def step_of(path: Path) -> int | None:
    """Optimizer step that a checkpoint's file name tells, or None for a name that is not this package's."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else None


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """Whole checkpoints in `folder`, by optimizer step, oldest first."""
    found = {step_of(path): path for path in folder.glob("step_*.ckpt")}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


class CheckpointPolicy(Checkpoint):
    """Saves at optimizer-step boundaries only: every `save_every_n_steps` and at the end.

    Where validation is due at the same step the checkpoint is written after it, so a resumed run neither repeats nor
    misses a validation. Keeps the newest few and the one with the lowest `val/loss`.

    Args:
        folder: where checkpoints go, as step_00000100.ckpt.
        config: how often, and how many to keep.
    """

    def __init__(self, folder: Path, config: TrainerConfig) -> None:
        self.folder = folder
        self.config = config
        self.best_loss: float | None = None
        self.best_step: int | None = None
        self.stop_after_save = False
        self._validation_loss: tuple[int, float] | None = None
        self._last_saved = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or leave it to the end of the validation that follows."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if step >= self.config.max_steps:
            trainer.should_stop = True  # makes Lightning validate once more, whatever the interval
        if self._due(step) and not self._validates(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the loss, and save if a save is due at this step."""
        if trainer.sanity_checking or not trainer.fit_loop.epoch_loop.global_step:
            return
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None:
            self._validation_loss = (trainer.global_step, float(loss))
        if self._due(trainer.global_step):
            self._save(trainer)

    def _due(self, step: int) -> bool:
        every = self.config.save_every_n_steps
        due = self.stop_after_save or step >= self.config.max_steps or (every is not None and step % every == 0)
        return due and step != self._last_saved

    def _validates(self, trainer: L.Trainer, batch_idx: int) -> bool:
        if not trainer.enable_validation:
            return False
        return trainer.should_stop or (batch_idx + 1) % int(trainer.val_check_batch or 1) == 0

    def _save(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        path = self.folder / f"step_{step:08d}.ckpt"
        if self._validation_loss is not None and self._validation_loss[0] == step:
            loss = self._validation_loss[1]
            if self.best_loss is None or loss < self.best_loss:
                self.best_loss, self.best_step = loss, step
        for logger in trainer.loggers:
            logger.save()  # curves up to here are on the disk before the checkpoint that takes them as done
        self._last_saved = step
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._prune()
        if self.stop_after_save:
            raise Interrupted(f"stopped after step {step}; go on from there with --ckpt_path last")

    def _prune(self) -> None:
        steps = list(saved_checkpoints(self.folder))
        keep = set(steps[-self.config.keep_last_checkpoints :])
        if self.config.keep_best_checkpoint and self.best_step is not None:
            keep.add(self.best_step)
        for step in set(steps) - keep:
            (self.folder / f"step_{step:08d}.ckpt").unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """The best loss so far and its step."""
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best loss so far."""
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]
