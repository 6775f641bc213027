"""What a run shows while it goes on."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# where stderr is not a terminal, a line of plain text at most this often
_SECONDS_BETWEEN_LINES = 15.0


class TrainingProgress(L.Callback):
    """A bar over optimizer steps with the newest losses, or a line now and then where stderr is not a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._last_line = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the step that the run starts from."""
        self._last_line = time.monotonic()
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[curves]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, curves="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, curves=self._curves(trainer))
        elif trainer.is_global_zero and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._line(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave a line for each validation: it is what a run is judged by."""
        if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
            self._line(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that an error is not drawn over."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, trainer: L.Trainer) -> None:
        self._last_line = time.monotonic()
        text = f"step {trainer.global_step}/{trainer.max_steps}  {self._curves(trainer)}"
        self.console.print(text, highlight=False)

    @staticmethod
    def _curves(trainer: L.Trainer) -> str:
        values = trainer.callback_metrics
        parts = []
        for name, label, form in (
            ("train/loss", "loss", ".3f"),
            ("val/loss", "val", ".3f"),
            ("throughput/tokens_per_second", "tok/s", ",.0f"),
        ):
            if name in values:
                parts.append(f"{label} {float(values[name]):{form}}")
        return "  ".join(parts)
