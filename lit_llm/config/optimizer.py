"""The optimizer and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lit_llm.config.errors import UserError
from lit_llm.config.rates import Stage, default_learning_rate, default_muon_learning_rate


@dataclass
class OptimizerConfig:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    """"muon" orthogonalises the update of each hidden matrix and leaves embeddings, head, norms and biases to AdamW."""
    learning_rate: float | None = None
    """Peak rate of AdamW; null: by stage, size of the model and LoRA, from the table in lit_llm/config/rates.py."""
    beta1: float = 0.9
    """AdamW: decay of the mean of the gradient."""
    beta2: float = 0.95
    """AdamW: decay of the mean of its square."""
    eps: float = 1e-8
    """AdamW: added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; norms, biases, scalars and embeddings have none."""
    fused: bool | None = None
    """AdamW in one fused kernel; null: wherever torch has one (CPU and CUDA)."""
    muon_learning_rate: float | None = None
    """Peak rate of Muon, before the shape factor sqrt(max(1, rows / columns)); null: 0.02 in pretraining, and five
    times learning_rate in the later stages."""
    muon_momentum: float = 0.95
    """Muon: momentum after warm-up."""
    muon_momentum_start: float = 0.85
    """Muon: momentum at the first step."""
    muon_momentum_warmup_steps: int = 300
    """Muon: steps over which the momentum rises; 0 for none."""
    muon_ns_steps: int = 5
    """Muon: Newton-Schulz iterations."""
    muon_ns_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Muon: arithmetic of Newton-Schulz. auto: bfloat16 on a GPU, and on a CPU where trainer.precision auto has chosen
    bf16-mixed; else float32. In bfloat16 an update is exact to a percent only, so that runs over other numbers of
    devices differ by as much."""

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise UserError(f"optimizer.eps is {self.eps}; it must be above 0")
        for name in ("learning_rate", "muon_learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"optimizer.{name} is {value}; it must be above 0, or null for the default")
        for name in ("beta1", "beta2", "muon_momentum", "muon_momentum_start"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.weight_decay < 0:
            raise UserError(f"optimizer.weight_decay is {self.weight_decay}; it must be at least 0")
        if self.muon_momentum_warmup_steps < 0 or self.muon_ns_steps < 1:
            raise UserError("optimizer.muon_momentum_warmup_steps must be at least 0 and muon_ns_steps at least 1")

    def with_rates(self, stage: Stage, parameters: int, *, lora: bool = False) -> OptimizerConfig:
        """The same with default rates where they are null; see `lit_llm.config.rates`.

        Args:
            stage: what the model is trained for.
            parameters: all that the model has.
            lora: whether an adapter is trained instead of all weights.
        """
        rate, muon_rate = self.learning_rate, self.muon_learning_rate
        if rate is None:
            rate = default_learning_rate(stage, parameters, lora=lora, muon=self.name == "muon")
        if muon_rate is None and self.name == "muon":
            muon_rate = default_muon_learning_rate(stage, rate)
        return replace(self, learning_rate=rate, muon_learning_rate=muon_rate)

    def newton_schulz_dtype(self, device_type: str) -> str:
        """The arithmetic of Newton-Schulz on a type of device, "float32" or "bfloat16"."""
        if self.muon_ns_dtype == "auto":
            return "float32" if device_type == "cpu" else "bfloat16"
        return self.muon_ns_dtype


@dataclass
class ScheduleConfig:
    """The learning rate over the run, as a share of its peak."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """After warm-up: half a cosine, flat and then straight down (warm-up-stable-decay), straight down, or flat."""
    warmup_steps: int | None = None
    """Optimizer steps from 0 to the peak; null: a share of trainer.max_steps, 2% in pretraining and 10% in the later
    stages; 0: none."""
    decay_fraction: float = 0.2
    """wsd: share of max_steps in which the rate falls."""
    min_ratio: float = 0.1
    """Share of the peak that the rate falls to: what a step after the last would have."""

    def __post_init__(self) -> None:
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps is {self.warmup_steps}; it must be at least 0")
        if not 0.0 < self.decay_fraction <= 1.0:
            raise UserError(f"schedule.decay_fraction is {self.decay_fraction}; it must be above 0 and at most 1")
        if not 0.0 <= self.min_ratio <= 1.0:
            raise UserError(f"schedule.min_ratio is {self.min_ratio}; it must be from 0 to 1")
