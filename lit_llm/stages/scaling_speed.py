"""How fast this machine trains a family of models, measured with a few steps, and the budgets that a time allows."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch

from lit_llm.config import PretrainConfig, UserError
from lit_llm.config.progress import track
from lit_llm.planning.scaling_family import Family, GridPoint, Member, run_of
from lit_llm.stages.pretrain import build_pretraining
from lit_llm.stages.short_runs import shortened, train_short

STEPS = 5
"""Steps that are timed; the first one before them is not."""
BUDGETS, APART = 3, 3.0
"""How many budgets a time is spent on, and how much larger each is than the one before."""


class _StepClock(L.Callback):
    """Notes the time at the end of each optimizer step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *more: Any) -> None:
        """Note it."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.times.append(time.perf_counter())


@dataclass(frozen=True)
class Speed:
    """Seconds of training by size of model, between those that were measured."""

    flops_per_token: list[float]
    """Of the measured models, the smallest first."""
    seconds_per_token: list[float]
    """Theirs."""
    overhead: float
    """Seconds of a run beside its steps and its validation."""

    def per_token(self, member: Member) -> float:
        """Seconds of a token; beyond the largest model that was measured, at its operations per second."""
        x = math.log(member.flops_per_token)
        known, seconds = np.log(self.flops_per_token), np.log(self.seconds_per_token)
        beyond = max(0.0, x - float(known[-1]))
        return float(math.exp(np.interp(x, known, seconds) + beyond))

    def of(self, point: GridPoint, validation_tokens: float) -> float:
        """Seconds of a run of the grid; a token that is validated on takes a third of one that is learned."""
        return (point.tokens + validation_tokens / 3) * self.per_token(point.member) + self.overhead


def measure(family: Family, run: PretrainConfig, indices: Sequence[int], number: int = 1) -> Speed:
    """Time a few steps of members of a family with the recipe's batch; leaves nothing behind.

    Args:
        family: the models.
        run: the recipe.
        indices: the members.
        number: runs at a time; each has its share of the threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // number))
    try:
        members = [family.member(index) for index in sorted(set(indices))]
        print(f"measuring how fast this machine trains {_sizes(members)}", file=sys.stderr)
        timed = [(member, *_time(family, run, member)) for member in track(members, "measuring", unit="models")]
    finally:
        torch.set_num_threads(threads)
    per_token, overheads = [each[1] for each in timed], [each[2] for each in timed]
    # the first trial imports and compiles for all of them
    return Speed([each[0].flops_per_token for each in timed], per_token, min(overheads))


def _sizes(members: Sequence[Member]) -> str:
    return " and ".join(f"{member.total:,}" for member in members) + " parameters, a few steps of each"


def _time(family: Family, run: PretrainConfig, member: Member) -> tuple[float, float]:
    """Seconds of a token, and seconds besides."""
    per_step = run.data.batch_size * run.data.length
    point = GridPoint(0.0, member, STEPS + 1, (STEPS + 1) * per_step, run.seed)
    clock = _StepClock()
    began = time.perf_counter()
    quietly = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="scaling_") as folder, contextlib.redirect_stderr(quietly):
        short = shortened(run_of(point, run, family.member(family.own)), folder, STEPS + 1)
        short.data = replace(short.data, validation_windows=1)
        train_short(short, build_pretraining, [clock])
    whole = time.perf_counter() - began
    steps = [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    step = sorted(steps)[len(steps) // 2]
    return step / per_step, max(0.0, whole - (STEPS + 1) * step)


def budgets_of_time(
    seconds: float,
    family: Family,
    run: PretrainConfig,
    points_of: Callable[[Sequence[float]], list[GridPoint]],
    validation_tokens: float,
    number: int,
) -> tuple[list[float], Speed]:
    """Choose budgets whose runs take a time together, and measure this machine for that.

    Args:
        seconds: for all runs, and what is measured here.
        family: the models.
        run: the recipe.
        points_of: lays out the grid of some budgets.
        validation_tokens: that each run is validated on.
        number: runs at a time.

    Returns:
        The budgets, in two digits, and the speed.

    Raises:
        UserError: the time is too short for a grid.
    """
    began = time.perf_counter()
    first = measure(family, run, [family.own], number)
    per_second = first.flops_per_token[0] / first.seconds_per_token[0]
    # a rough guess says which sizes to measure: half of the time, shared by some five runs for each budget
    rough = 0.5 * seconds * number * per_second / (5 * sum(APART**-power for power in range(BUDGETS)))
    sizes = [point.member.index for point in points_of(_below(rough))]
    if not sizes:
        raise UserError(_too_short(seconds))
    speed = measure(family, run, [min(sizes), sorted(sizes)[len(sizes) // 2], max(sizes)], number)
    left = seconds - (time.perf_counter() - began)

    def whole(largest: float) -> float:
        return sum(speed.of(point, validation_tokens) for point in points_of(_below(largest))) / number

    low, high = rough / 1000, rough * 100
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if whole(middle) <= left else (low, middle)
    budgets = [float(f"{budget:.1e}") for budget in _below(low)]
    if len({point.member.index for point in points_of(budgets)}) < 3:
        raise UserError(_too_short(seconds))
    return budgets, speed


def _below(largest: float) -> list[float]:
    return [largest / APART**power for power in reversed(range(BUDGETS))]


def _too_short(seconds: float) -> str:
    return (
        f"{seconds / 60:g} minutes are too short for a grid of this recipe: give more --minutes, a smaller "
        "data.batch_size, or --budgets"
    )
