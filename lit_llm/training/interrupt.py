"""Stopping on purpose: Ctrl-C, SIGTERM and preemption end a run at a step boundary, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L

from lit_llm.training.checkpoint import CheckpointPolicy, Interrupted, Preempted

PREEMPTION = getattr(signal, "SIGUSR1", None)  # which Windows has not
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, PREEMPTION) if number is not None)


class GracefulStop(L.Callback):
    """Ends a run at the first signal, with a checkpoint, after the step that is running; at a second one at once.

    After SIGUSR1, which SLURM sends ahead of a preemption or the time limit if the job asks for it
    (`sbatch --signal=USR1@120`), the process ends with exit status 75: the job script queues itself again. After
    SIGINT and SIGTERM it is 1.

    Lightning's own handler saves wherever the signal falls, also inside an accumulation window, and its collective
    deadlocks under data parallelism; here all ranks agree at the boundary.

    Args:
        policy: writes the checkpoint and ends the run.
    """

    def __init__(self, policy: CheckpointPolicy) -> None:
        self.policy = policy
        self._received: int | None = None
        self._tells = False
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle the signals from now on, if this is the main thread: Python allows it nowhere else."""
        self._tells = trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        if self._tells:  # not by way of sys.stderr, which the signal may have interrupted
            os.write(2, b"\nstopping after this step; another signal stops at once\n")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At a step boundary, agree over the ranks whether to stop."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self._any_rank(trainer, self._received is not None):
            preempted = self._any_rank(trainer, self._received is not None and self._received == PREEMPTION)
            self.policy.stopping = Preempted if preempted else Interrupted

    @staticmethod
    def _any_rank(trainer: L.Trainer, decision: bool) -> bool:
        return trainer.strategy.reduce_boolean_decision(decision, all=False) if trainer.world_size > 1 else decision

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
