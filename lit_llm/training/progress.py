"""What a run shows while it goes on."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lit_llm.config.progress import LineClock, in_words


class TrainingProgress(L.Callback):
    """Shows how far the training has come: the step, and the newest values of the module's `progress_curves`.

    On a terminal it is a bar, elsewhere a line now and then. Each validation leaves a line in any case.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._clock = LineClock()
        self._first_step = 0
        self._last_line = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the step that the run starts from."""
        self._clock = LineClock()
        self._first_step = trainer.global_step
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
        """Move the bar on, or print a line if one is due."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, curves=self._curves(trainer))
        elif trainer.is_global_zero and self._clock.due():
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
        self._clock.restart()
        step, steps = trainer.global_step, trainer.max_steps
        parts = [f"step {step}/{steps}", self._curves(trainer)]
        if self._first_step < step < steps:
            left = self._clock.seconds * (steps - step) / (step - self._first_step)
            limit = trainer.lightning_module.config.trainer.max_seconds  # type: ignore[union-attr]
            if limit is not None:  # whichever comes first ends the run
                left = min(left, max(0.0, limit - self._clock.seconds))
            parts.append(f"about {in_words(left)} left")
        # without a width, so that a long line stays one line in a file
        line = "  ".join(filter(None, parts))
        if line != self._last_line:  # a validation at the end may follow a line of the same step
            self.console.print(line, highlight=False, soft_wrap=True)
        self._last_line = line

    @staticmethod
    def _curves(trainer: L.Trainer) -> str:
        values, module = trainer.callback_metrics, trainer.lightning_module
        shown = (*module.progress_curves, ("throughput/tokens_per_second", "tok/s", ",.0f"))  # type: ignore[union-attr]
        return "  ".join(f"{label} {float(values[name]):{form}}" for name, label, form in shown if name in values)
