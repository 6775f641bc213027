"""The Lightning Trainer options that are supported and tested, under Lightning's names where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_llm.config.errors import UserError


@dataclass
class TrainerConfig:
    """How long, on what and how often. Every count is in optimizer steps, whatever the accumulation."""

    max_steps: int = 1000
    """Optimizer steps in the run; a run has no other end."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device."""
    devices: int | Literal["auto"] = "auto"
    """Devices on each machine; "auto" takes every GPU, or one CPU process."""
    num_nodes: int = 1
    """Machines."""
    strategy: Literal["auto", "ddp"] = "auto"
    """One device, or data-parallel replicas; "auto" chooses by the number of devices."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """float32; bfloat16 arithmetic on float32 weights; or all bfloat16, optimizer too (small updates are lost)."""
    gradient_clip_val: float | None = 1.0
    """Largest norm of the whole gradient; null does not clip."""
    val_every_n_steps: int | None = 250
    """Validate after every so many steps and at the last one; null: only at the last one."""
    save_every_n_steps: int | None = 250
    """Write a checkpoint after every so many steps and at the last one; null: only at the last one."""
    keep_last_checkpoints: int = 2
    """Newest checkpoints kept, besides the best."""
    keep_best_checkpoint: bool = True
    """Keep the checkpoint of the lowest val/loss among those saved where validation ran."""
    log_every_n_steps: int = 10
    """Write the training curves after every so many steps."""
    compile: bool = False
    """torch.compile each block (pays on CUDA; a few per cent on CPU)."""
    deterministic: bool = False
    """Only deterministic kernels; needed for bit-identical resume on CUDA."""
    enable_progress_bar: bool = True
    """Show a progress bar, or a line now and then where the output is not a terminal."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "num_nodes", "keep_last_checkpoints", "log_every_n_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("val_every_n_steps", "save_every_n_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"trainer.{name} is {value}; it must be at least 1, or null")
        if self.gradient_clip_val is not None and self.gradient_clip_val <= 0:
            raise UserError(f"trainer.gradient_clip_val is {self.gradient_clip_val}; null turns clipping off")
        if isinstance(self.devices, int) and self.devices < 1:
            raise UserError(f"trainer.devices is {self.devices}; it must be at least 1")
