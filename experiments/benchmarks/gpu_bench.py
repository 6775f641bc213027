"""Where the pieces of `gpu.py` are measured, and how.

On the CPU the shapes are tiny, to see that each piece runs; its figures mean nothing there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_llm.config import ModelConfig, preset

Finding = dict[str, Any]
SHAPES = {
    "350m": {"name": "llama-10m", "vocab_size": 50304, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "1b": {"name": "llama3.2-1b", "rope_scaling": None},
    "tiny": {"name": "llama-10m", "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "num_heads": 4},
}


@dataclass
class Bench:
    """Where it is measured, and how."""

    device: str

    @property
    def tiny(self) -> bool:
        """Whether it is only seen to run."""
        return self.device == "cpu"

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ms(self, run: Callable[[], Any], times: int = 10, warm: int = 3) -> float:
        """Milliseconds of a run, the mean of several after some that do not count."""
        times, warm = (1, 1) if self.tiny else (times, warm)
        for _ in range(warm):
            run()
        self.wait()
        began = time.perf_counter()
        for _ in range(times):
            run()
        self.wait()
        return round((time.perf_counter() - began) / times * 1e3, 3)

    def peak_mib(self, run: Callable[[], Any]) -> float | None:
        """MiB that a run takes at its highest, above what is held before it; None where the device does not count."""
        if self.device != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20)

    def bf16_ceiling(self) -> float:
        """TFLOP/s of the fastest square product in bfloat16."""
        sides = (64,) if self.tiny else (4096, 8192)
        return max(2 * side**3 / self.ms(self._square(side, torch.bfloat16)) / 1e9 for side in sides)

    def bandwidth(self) -> float:
        """GB/s at which memory is read."""
        memory = torch.ones(2**16 if self.tiny else 2**30, device=self.device, dtype=torch.bfloat16)
        return memory.numel() * 2 / self.ms(memory.sum) / 1e6

    def _square(self, side: int, dtype: torch.dtype) -> Callable[[], Tensor]:
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        return partial(torch.mm, a, b.t())

    def model(self, shape: str, length: int, **fields: Any) -> ModelConfig:
        """The architecture of a shape, with room for rows of `length`."""
        return preset(**{**SHAPES["tiny" if self.tiny else shape], "max_position_embeddings": length, **fields})


def tried(finding: Finding, measure: Callable[[], Finding]) -> Finding:
    """A finding, or the reason why there is none, so that the rest of a piece goes on."""
    try:
        return {**finding, **measure()}
    except Exception as error:
        return {**finding, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
