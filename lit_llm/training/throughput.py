"""The speed of a run, and how much of its time is spent waiting for data."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning as L
import torch

from lit_llm.distributed.ranks import data_parallel_rank
from lit_llm.planning import PEAK_FLOPS, matching_gpu


def peak_flops(device: torch.device) -> float | None:
    """Look up the dense peak of a CUDA device, in FLOP/s; None for a device that is not in the table."""
    if device.type != "cuda":
        return None
    name = matching_gpu(torch.cuda.get_device_name(device))
    return PEAK_FLOPS[name] if name is not None else None


def peak_memory_gib(device: torch.device) -> float:
    """Measure the most memory held so far, in GiB: the device's on CUDA, the process's on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Throughput(L.Callback):
    """Logs tokens seen, tokens per second, the share of time spent waiting for data, MFU and peak memory.

    Time spent validating does not count. MFU is left out on a device whose peak is unknown, and in a stage whose
    operations do not follow from its tokens.

    Tokens are those that the module reads on this rank, times the ranks that share the batch.

    Args:
        flops_per_token: forward and backward, counted; None: they are not known.

    Attributes:
        tokens: seen so far, those before a resume included.
        tokens_per_second: speed at the last point.
    """

    def __init__(self, flops_per_token: float | None) -> None:
        self.flops_per_token = flops_per_token
        self.tokens = 0
        self.tokens_per_second = 0.0
        self._counted_step: int | None = None

    def tokens_at(self, step: int) -> int | None:
        """The tokens seen after a step, or None where that is not the newest step, or has not ended."""
        return self.tokens if step == self._counted_step else None

    def _restart(self, trainer: L.Trainer) -> None:
        self._since = time.perf_counter()
        self._step = trainer.global_step
        self._tokens = self.tokens
        self._waited = trainer.train_dataloader.wait_seconds

    def _measure(self) -> float:
        """Set the speed since the last point; returns the seconds since then."""
        seconds = time.perf_counter() - self._since
        self.tokens_per_second = (self.tokens - self._tokens) / seconds
        return seconds

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the first batch: building the loaders before it is not training."""
        if not hasattr(self, "_since"):
            self._restart(trainer)

    def take_off(self, seconds: float) -> None:
        """Take the time of what is no training off the clock."""
        if hasattr(self, "_since"):
            self._since += seconds

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note when the validation begins."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the time of the validation off the clock."""
        self.take_off(time.perf_counter() - self._paused)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens, and log a point at the steps at which the module logs its curves."""
        self.tokens += pl_module.tokens_of(batch) * data_parallel_rank(trainer)[1]
        step = self._counted_step = trainer.global_step
        if step == self._step or not pl_module.logs_step(step):
            return
        seconds = self._measure()
        values = {
            "throughput/tokens": float(self.tokens),
            "throughput/tokens_per_second": self.tokens_per_second,
            "throughput/data_wait_share": (trainer.train_dataloader.wait_seconds - self._waited) / seconds,
            "throughput/peak_memory_gib": peak_memory_gib(pl_module.device),
        }
        peak = peak_flops(pl_module.device)
        if peak is not None and self.flops_per_token is not None:
            values["throughput/mfu"] = self.tokens_per_second * self.flops_per_token / (peak * trainer.world_size)
        pl_module.record(values, step)
        self._restart(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the speed of all steps where the run has ended before the first point."""
        if not self.tokens_per_second and hasattr(self, "_since"):
            self._measure()

    def state_dict(self) -> dict[str, Any]:
        """Give the number of tokens seen."""
        return {"tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.tokens = state_dict["tokens"]
