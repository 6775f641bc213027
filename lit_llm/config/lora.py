"""Low-rank adaptation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.errors import UserError
from lit_llm.config.model import PROJECTIONS
from lit_llm.config.trainer import TrainerConfig


@dataclass
class LoraConfig:
    """Train low-rank additions to the linear layers, and leave their weights as they are (LoRA).

    Source: Hu et al. 2021 (LoRA); Kalajdzievski 2023 (rsLoRA); Liu et al. 2024 (DoRA); Dettmers et al. 2023 (QLoRA).
    """

    rank: int = 0
    """Rank of the additions; 0 trains all weights instead."""
    alpha: float = 16.0
    """Additions are multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout of what the additions read."""
    targets: list[str] = field(default_factory=lambda: ["all"])
    """Layers of each block that get one: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or all."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which keeps high ranks learning."""
    dora: bool = False
    """Learn the length of each row of the weights apart from its direction."""
    quantize_base: Literal["none", "int8", "int4"] = "none"
    """Hold the weights that stay as they are in 8 or 4 bits (QLoRA)."""
    adapter: str | None = None
    """PEFT adapter folder to start from; its rank, alpha, targets, rslora and dora take the place of these."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; it must be at least 1, or 0 to train all weights")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha is {self.alpha}; it must be above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"lora.dropout is {self.dropout}; it must be from 0 to below 1")
        if not self.targets:
            raise UserError("lora.targets is empty; name layers such as q_proj, or all")
        unknown = [name for name in self.targets if name not in (*PROJECTIONS, "all")]
        if unknown:
            raise UserError(
                f"lora.targets has {unknown[0]!r}; it can have {', '.join(PROJECTIONS)}, or all for all of these"
            )
        if self.quantize_base not in ("none", "int8", "int4"):
            raise UserError(f"lora.quantize_base is {self.quantize_base!r}; it must be none, int8 or int4")
        if not self.active:
            defaults = {"alpha": 16.0, "dropout": 0.0, "targets": ["all"], "rslora": False, "dora": False}
            for name, default in {**defaults, "quantize_base": "none"}.items():
                if getattr(self, name) != default:
                    raise UserError(f"lora.{name} has no effect while lora.rank is 0; give lora.rank, too")

    @property
    def active(self) -> bool:
        """Whether there is an adapter at all."""
        return self.rank > 0 or self.adapter is not None

    @property
    def projections(self) -> tuple[str, ...]:
        """The targets by name."""
        return tuple(name for name in PROJECTIONS if name in self.targets or "all" in self.targets)

    @property
    def scale(self) -> float:
        """What additions are multiplied by. The rank must be known."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def check_trainer(self, trainer: TrainerConfig) -> None:
        """Refuse what an adapter cannot be trained under.

        Raises:
            UserError: names the option and what to use instead.
        """
        if not self.active:
            return
        if trainer.strategy in ("fsdp1", "deepspeed"):
            raise UserError(f"lora does not work with trainer.strategy {trainer.strategy}; use fsdp or ddp")
        if trainer.tensor_parallel_size > 1:
            raise UserError("lora needs trainer.tensor_parallel_size 1; the ranks can share the batch instead")
        if trainer.float8:
            raise UserError("trainer.float8 is for weights that are trained; with lora.rank set it to false")
        if self.quantize_base != "none" and trainer.strategy == "fsdp":
            raise UserError("lora.quantize_base does not work with trainer.strategy fsdp; use ddp, or one device")
        if self.dora and trainer.strategy == "fsdp" and trainer.precision != "32-true":
            # lengths would be rounded to bfloat16's three digits in each pass
            raise UserError("lora.dora with trainer.strategy fsdp needs trainer.precision 32-true; or use strategy ddp")
