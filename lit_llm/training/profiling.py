"""Traces of a few steps by the torch profiler: where their time and memory go."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from lit_llm.config.files import replace_file

WARMUP_STEPS = 3
"""Steps before the traced ones: allocators, kernels and compilation settle."""
_MEMORY_EVENTS = 100_000


class StepProfiler(L.Callback):
    """Traces a few optimizer steps and leaves them in `folder`.

    rank_0.pt.trace.json.gz, one for each rank: open it at https://ui.perfetto.dev or chrome://tracing, or in
    TensorBoard with the plugin torch-tb-profiler. summary.txt: the ten operations that took most time themselves.
    memory_rank_0.pickle, on CUDA: the allocations, for https://pytorch.org/memory_viz. What happens between two of
    the steps, such as a validation, is in the trace, too. The training itself is not changed.

    Args:
        folder: where it goes.
        steps: optimizer steps to trace, after `WARMUP_STEPS` others; a run too short for both warms up less.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.steps = steps
        self._profile: profile | None = None
        self._traced = self._left = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the first step of this start, and prepare the profiler."""
        todo = trainer.max_steps - trainer.global_step
        traced = min(self.steps, todo)
        if traced < 1:
            return
        before = min(WARMUP_STEPS, todo - traced)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write its own notices between those of the run
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
        self._traced, self._left = traced, before + traced
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*won't be using warmup.*")
            # the profiler's own start-up falls into the last step before
            plan = schedule(wait=max(0, before - 1), warmup=min(1, before), active=traced, repeat=1)
            self._profile = profile(activities=activities, schedule=plan, record_shapes=True)
            self._profile.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step, and begin or end the trace where it is due."""
        if self._profile is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._left -= 1
        if self._left:
            self._profile.step()
        else:
            self._profile.stop()
            self._write(self._profile, trainer.global_rank)
            self._profile = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what there is of a run that has ended before its last step."""
        if self._profile is None:
            return
        self._profile.stop()
        self._traced -= self._left
        if self._traced > 0:
            self._write(self._profile, trainer.global_rank)
        else:
            self._stop_memory_history()
            if trainer.global_rank == 0:
                print("no profile: the run ended before a step was traced", file=sys.stderr)
        self._profile = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop recording; the trace of a failed run is dropped."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            self._stop_memory_history()

    def _write(self, finished: profile, rank: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(self.folder / f"rank_{rank}.pt.trace.json.gz"))
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory_rank_{rank}.pickle"))
        self._stop_memory_history()
        if rank == 0:
            replace_file(self.folder / "summary.txt", summary(finished) + "\n")
            print(
                f"profile of {self._traced} steps in {self.folder}: summary.txt, and a trace for https://ui.perfetto.dev",
                file=sys.stderr,
            )

    @staticmethod
    def _stop_memory_history() -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.memory._record_memory_history(enabled=None)


def summary(finished: profile) -> str:
    """List the ten operations with most time of their own, on the device if it was traced, else on the CPU."""
    averages = finished.key_averages()
    on_device = any(event.self_device_time_total for event in averages)
    order = "self_device_time_total" if on_device else "self_cpu_time_total"
    return str(averages.table(sort_by=order, row_limit=10))
