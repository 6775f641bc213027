"""What a sweep over learning rates is configured by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.errors import UserError


@dataclass
class FindRateConfig:
    """Try learning rates for a few steps each, from the same start; options of the stage's run follow after a lone --.

    For example: find_rate.py --stage sft --steps 40 -- --init_from checkpoints/pretrain --data.paths '[rows.json]'
    """

    stage: Literal["pretrain", "sft", "reward", "dpo"] = "pretrain"
    """Stage to find a rate for."""
    run: str | None = None
    """YAML file of that stage's options, as its own --config."""
    options: list[str] = field(default_factory=list)
    """Options of that stage, word by word; on a command line they stand after --, as that stage's script takes them."""
    rates: list[float] | None = None
    """Rates to try; null: a tenth, a third, once, three and ten times the default of stage and model."""
    steps: int = 40
    """Optimizer steps with each rate; the schedule of the run is squeezed into them."""
    output: str = "find_rate.html"
    """Page to write: the curves and the losses."""

    def __post_init__(self) -> None:
        if self.steps < 4:
            raise UserError(f"steps is {self.steps}; it must be at least 4, for rates to show a difference")
        if self.rates is not None and (len(set(self.rates)) < 2 or min(self.rates) <= 0):
            raise UserError(f"rates is {self.rates}; it must have at least two different numbers above 0, or be null")
        if not self.output.endswith(".html"):
            raise UserError(f"output is {self.output}; it must be a file *.html")
