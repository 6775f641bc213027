"""What a grid of small models is trained for, to learn from it how large a model to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.bounds import check_at_least
from lit_llm.config.errors import UserError


@dataclass
class ScalingConfig:
    """Train a grid of small models, fit the loss to size and data, and say what to train; options of pretrain after --.

    The recipe's shape is scaled in width and depth with heads of one width; each run of the grid has a schedule of its
    own length, the recipe's batch, and the rate of its size. Finished runs are kept: the same command goes on, another
    budget or size adds to the grid, what is left out is as in the folder, and a folder alone is fitted and drawn again.

    For example: scaling.py --minutes 20 --hours 24 -- --model.preset modern-1m --data.paths '[checkpoints/my/shards]'
    """

    run: str | None = None
    """YAML file of pretraining options, as pretrain's own --config."""
    options: list[str] = field(default_factory=list)
    """Options of pretraining, word by word; on a command line they stand after --. Without any, those of the folder."""
    output: str = "checkpoints/scaling"
    """Folder of the grid: its runs, and scaling.json, scaling.md and scaling.html."""
    budgets: list[float] | None = None
    """Floating-point operations of the training of each run, as [1e12, 3e12, 1e13]; null: from minutes, or those of the
    folder."""
    minutes: float | None = None
    """How long the grid may take on this machine: its speed is measured, and three budgets are chosen that differ by
    three each."""
    sizes: list[float] | None = None
    """Parameters of the models of each budget, of which the nearest of the family is taken; null: those of the folder,
    or, where it has none or points or tokens_per_parameter is given, `points` sizes around the one with
    tokens_per_parameter."""
    points: int | None = None
    """Models of each budget, where there are no sizes; null: as in the folder, or 5."""
    tokens_per_parameter: float | None = None
    """Where the sizes of a budget are centred, where there are none; null: as in the folder, or 20, Chinchilla's."""
    parameters: Literal["total", "non_embedding"] | None = None
    """What N counts: every weight, tied ones once (total), or all but embeddings and head. Small models are largely
    embedding, and only with all of them do they lie on one line with larger ones (Pearce and Song 2024). null: as in
    the folder, or total."""
    seeds: list[int] | None = None
    """Each point of the grid is trained with each; several show how much of a difference is chance. null: those of the
    folder, or [1337]."""
    num_workers: int = 1
    """Runs at a time: on a CPU each has its share of the threads; with CUDA each has a GPU of its own, at most as many
    as there are."""
    dry_run: bool = False
    """Print the grid and the time that it will take, which is measured with a few steps, and train nothing."""
    hours: float | None = None
    """Say what to train in so many hours on this machine, or on gpu."""
    gpu: str | None = None
    """Kind of GPU that hours are meant on, as H100; null: this machine, at the speed of the grid's runs."""
    num_gpus: int = 1
    """GPUs of that kind."""
    mfu: float = 0.4
    """Share of the GPU's dense bf16 peak that training reaches."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_workers", "num_gpus")
        check_at_least(self, 3, "points")
        for name in ("minutes", "hours", "tokens_per_parameter"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}; it must be above 0")
        if not 0.0 < self.mfu <= 1.0:
            raise UserError(f"mfu is {self.mfu}; it must be above 0 and at most 1")
        for name in ("budgets", "sizes", "seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values) or min(values) <= 0):
                raise UserError(f"{name} is {values}; it must be a list of different numbers above 0")
        if self.budgets is not None and self.minutes is not None:
            raise UserError("budgets and minutes are given, and minutes chooses budgets; give one of the two")
        if self.hours is None:
            for name, value in (("gpu", None), ("num_gpus", 1), ("mfu", 0.4)):
                if getattr(self, name) != value:
                    raise UserError(f"{name} has no effect without hours")
        elif self.gpu is None and (self.num_gpus, self.mfu) != (1, 0.4):
            raise UserError("num_gpus and mfu have no effect without gpu: this machine's speed is measured")
