"""A grid of small models under a few budgets: laid out, trained, and read back for the fit."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lit_llm.config import PretrainConfig, ScalingConfig, UserError, from_plain, to_plain
from lit_llm.config.files import replace_file
from lit_llm.config.lock import locked
from lit_llm.config.progress import in_words
from lit_llm.config.yaml_text import write_yaml
from lit_llm.planning.scaling_family import Family, GridPoint, grid_points, run_of
from lit_llm.planning.scaling_fit import SCALING_FILE, Point, ScalingFit, fit_points
from lit_llm.stages.pretrain import build_pretraining
from lit_llm.stages.scaling_speed import Speed, budgets_of_time, measure
from lit_llm.stages.scaling_workers import POINT_FILE, Task, train_all
from lit_llm.training.checkpoint import Interrupted, Preempted
from lit_llm.training.run_record import differences

GRID_FILE = "grid.yaml"
_CHOICES = {
    "minutes": None,
    "sizes": None,
    "points": 5,
    "tokens_per_parameter": 20.0,
    "parameters": "total",
    "seeds": [1337],
}
"""Options that a later start takes from the folder where they are null, and what they are in a new one."""
VALIDATION_TOKENS = 2**16
"""Tokens that a run of the grid is validated on, the same for all, where data.validation_windows does not say it. The
standard error of their mean is some 0.01 nats, most of which all runs have in common."""
MINUTES_BETWEEN_SAVES = 2.0
MOST_PASSES = 4.0
"""Data that is read more often teaches less each time (Muennighoff et al. 2023); the law knows of fresh data only."""


@dataclass
class Grid:
    """What is to be trained, and what is known of it before."""

    folder: Path
    """Of the grid."""
    run: PretrainConfig
    """The recipe, with vocabulary and length known."""
    family: Family
    """The models."""
    points: list[GridPoint]
    """The runs."""
    budgets: list[float]
    """Floating-point operations of each."""
    digests: list[str]
    """Of the training shards."""
    passes: Callable[[int], float]
    """How often the data is read by so many samples."""
    validation_tokens: int
    """That each run is validated on."""
    choices: dict[str, Any]
    """What is in force of the options that a later start takes from the folder; budgets stand for themselves."""
    speed: Speed | None = None
    """Of this machine, where it was measured."""
    lines: list[str] = field(default_factory=list)
    """What is to be said of the grid."""

    def seconds(self, point: GridPoint) -> float:
        """How long a run is expected to take; NaN where the speed is not known."""
        return math.nan if self.speed is None else self.speed.of(point, self.validation_tokens)


def scaling(
    config: ScalingConfig,
    run: PretrainConfig | None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Grid, ScalingFit | None]:
    """Train the runs of a grid that are not finished, and fit what all of them have come to.

    Args:
        config: the grid.
        run: the recipe; None: that of the folder.
        tell: is called with a line after each run.

    Returns:
        The grid, and the fit; None for a dry run.

    Raises:
        UserError: as pretraining itself; the folder holds the grid of another recipe; or nothing says what to train.
    """
    grid = lay_out(config, run)
    if config.dry_run:
        if grid.speed is None:
            sizes = sorted({point.member.index for point in grid.points})
            grid.speed = measure(
                grid.family, grid.run, [sizes[0], sizes[len(sizes) // 2], sizes[-1]], config.num_workers
            )
        return grid, None
    grid.folder.mkdir(parents=True, exist_ok=True)
    with locked(grid.folder, "give another --output"):
        _save(grid)
        _train(grid, config, tell)
        fit = fit_points(read_points(grid.folder), to_plain(grid.run), grid.family.counted)
        fit.lines[:0] = grid.lines
        replace_file(grid.folder / SCALING_FILE, json.dumps(fit.as_plain(), indent=1) + "\n")
    return grid, fit


def lay_out(config: ScalingConfig, run: PretrainConfig | None) -> Grid:
    """Lay out the grid, with the budgets that are given, measured or saved; trains nothing.

    Raises:
        UserError: see `scaling`.
    """
    folder = Path(config.output)
    saved = _saved(folder / GRID_FILE)
    if run is None:
        if saved is None:
            raise UserError(
                f"there is no grid in {folder} yet: give the options of a pretraining run after --, as "
                "-- --model.preset modern-1m --data.paths '[checkpoints/my/shards]'"
            )
        run = from_plain(PretrainConfig, saved["recipe"])
    run = copy.deepcopy(run)
    if run.init_from is not None:
        raise UserError("a law is fitted to models that start from random weights; leave init_from out")
    asked = copy.deepcopy(run)  # as it is given, without the rates that the stage chooses for one size
    with contextlib.redirect_stderr(io.StringIO()):  # it tells the choices for one size
        _, data, _ = build_pretraining(run)
    if not data.has_split("validation"):
        raise UserError(
            f"{', '.join(run.data.folders)} has no validation split, whose loss the law is fitted to; prepare the data "
            "with corpus.validation_fraction above 0"
        )
    asked.model, asked.data = run.model, run.data
    if asked.data.validation_windows is None:
        asked.data = replace(asked.data, validation_windows=max(1, VALIDATION_TOKENS // asked.data.length))
    digests = data.fingerprint["train_digests"]
    if saved is not None:
        _compare(folder, saved, asked, digests)
    read = data.evaluation_dataset("validation", 0, 1)
    windows = min(asked.data.validation_windows or 1, len(read))
    choices = _choices(config, saved or {})
    family = Family(asked.model, asked.data.length, choices["parameters"])
    grid = Grid(folder, asked, family, [], [], digests, data.passes, windows * asked.data.length, choices)
    _choose_points(grid, config, saved)
    return grid


def _choices(config: ScalingConfig, saved: dict[str, Any]) -> dict[str, Any]:
    """What is given, else what the folder has, else what a new grid has."""
    choices = {}
    for name, default in _CHOICES.items():
        values = getattr(config, name), saved.get(name), default
        choices[name] = next((value for value in values if value is not None), None)
    if config.points is not None or config.tokens_per_parameter is not None:
        choices["sizes"] = config.sizes
    if config.budgets is not None:  # which are of no time
        choices["minutes"] = None
    return choices


def _choose_points(grid: Grid, config: ScalingConfig, saved: dict[str, Any] | None) -> None:
    """Put budgets, points and what is to be said of them into the grid."""
    own, choices = grid.run, grid.choices

    def laid_out(budgets: Sequence[float]) -> tuple[list[GridPoint], list[str]]:
        chosen = (choices[name] for name in ("sizes", "points", "tokens_per_parameter", "seeds"))
        return grid_points(grid.family, own, budgets, *chosen)

    if config.budgets is not None:
        grid.budgets = sorted(config.budgets)
    elif saved is not None and config.minutes in (None, saved.get("minutes")):
        grid.budgets = saved["budgets"]
    elif config.minutes is not None:
        grid.budgets, grid.speed = budgets_of_time(
            60 * config.minutes,
            grid.family,
            own,
            lambda budgets: laid_out(budgets)[0],
            grid.validation_tokens,
            config.num_workers,
        )
    else:
        raise UserError("say how large the grid is: --minutes 20, or --budgets '[1e12,3e12,1e13]'")
    grid.points, left_out = laid_out(grid.budgets)
    grid.lines += left_out
    if not grid.points:
        raise UserError(f"no run of the grid is left; {left_out[0]}")
    longest = max(grid.points, key=lambda point: point.tokens)
    passes = grid.passes(longest.steps * own.data.batch_size)
    if passes > 1:
        line = f"the longest run reads the data {passes:.3g} times, {longest.tokens:,} tokens"
        more = "; read so often it teaches less, and the law comes out too pessimistic about more data: take more text"
        grid.lines.append(line + (more if passes > MOST_PASSES else ", and the law is one of fresh data"))


def _saved(path: Path) -> dict[str, Any] | None:
    """Read what an earlier start has left."""
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(saved["recipe"], dict) and isinstance(saved["budgets"], list):
            from_plain(ScalingConfig, {name: saved[name] for name in _CHOICES if name in saved})  # checks them
            return saved
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, yaml.YAMLError):
        pass
    raise UserError(f"{path} is damaged; give another --output, or delete the folder")


def _compare(folder: Path, saved: dict[str, Any], run: PretrainConfig, digests: Sequence[str]) -> None:
    """Refuse to put runs of another recipe into a grid.

    Raises:
        UserError: names the options that differ.
    """
    alike = {"data.validation_windows"}
    if run.schedule.warmup_steps is not None:
        alike.add("trainer.max_steps")  # of which the warm-up is a share
    others = [
        each
        for each in differences(saved["recipe"], run, step=0)
        if (each.learned and each.name != "seed") or each.name in alike
    ]
    if others:
        raise UserError(
            f"{folder} holds a grid of another recipe: {', '.join(map(str, others))}; give the same options, or "
            "another --output"
        )
    if saved["digests"] != list(digests):
        raise UserError(
            f"{folder} holds a grid on other data: the content of data.paths has changed; give another --output"
        )


def _save(grid: Grid) -> None:
    """Write down what the grid is, for the next start."""
    values = {"recipe": to_plain(grid.run), "digests": grid.digests, "budgets": grid.budgets, **grid.choices}
    replace_file(grid.folder / GRID_FILE, write_yaml(values))


def _train(grid: Grid, config: ScalingConfig, tell: Callable[[str], None]) -> None:
    """Train what is not finished, the longest runs first where several go at a time."""
    tasks = [task_of(grid, point) for point in grid.points]
    missing = [task for task in tasks if not task.file.is_file()]
    if config.num_workers > 1:
        missing.sort(key=lambda task: -task.facts["flops"])
    if len(missing) < len(tasks):
        tell(f"{len(tasks) - len(missing)} of {len(tasks)} runs are finished already")
    began, whole = time.monotonic(), sum(task.facts["flops"] for task in missing)
    count = flops = 0

    def done(task: Task, point: dict[str, Any]) -> None:
        nonlocal count, flops
        count += 1
        flops += task.facts["flops"]
        loss = f"loss {point['loss']:.4f}" if point["loss"] is not None else f"left out, {point['why']}"
        facts, number = task.facts, len(tasks) - len(missing) + count
        line = f"{number}/{len(tasks)} {facts['budget']:.3g} operations, {facts['total']:,} parameters, "
        line += f"{facts['tokens']:,} tokens: {loss}"
        left = (time.monotonic() - began) * (whole - flops) / flops
        tell(line + (f"; about {in_words(left)} left" if count < len(missing) else ""))

    try:
        train_all(missing, config.num_workers, done)
    except (Interrupted, KeyboardInterrupt) as stopped:
        # as with several workers and in other commands, Ctrl-C has a status of its own, whatever the run made of it
        kind = Preempted if isinstance(stopped, Preempted) else KeyboardInterrupt
        raise kind("stopped; what is finished is kept, and the same command goes on") from stopped


def task_of(grid: Grid, point: GridPoint) -> Task:
    """The run of a point, and what is known of it."""
    run = run_of(point, grid.run, grid.family.member(grid.family.own))
    trainer = replace(
        run.trainer.on_one_device(),
        max_time=None,
        early_stopping_patience=None,
        val_every_n_steps=None,
        save_every_n_steps=None,
        save_every_n_minutes=run.trainer.save_every_n_minutes or MINUTES_BETWEEN_SAVES,
        keep_last_checkpoints=1,
        keep_best_checkpoint=False,
        loggers=[],
        enable_progress_bar=False,
    )
    run = replace(
        run,
        output_root=str(grid.folder / "runs"),
        ckpt_path="last_or_begin",
        overwrite=False,
        resume_changed=False,
        replay=None,
        trainer=trainer,
        samples=replace(run.samples, prompts=[]),
    )
    member = point.member
    facts = {
        "name": point.name,
        "budget": point.budget,
        "flops": point.flops,
        "index": member.index,
        "total": member.total,
        "non_embedding": member.non_embedding,
        "tokens": point.tokens,
        "steps": point.steps,
        "seed": point.seed,
        "learning_rate": run.optimizer.learning_rate,
        "warmup_steps": run.schedule.warmup_steps,
        "passes": grid.passes(point.steps * run.data.batch_size),
        "flops_per_token": member.flops_per_token,
    }
    return Task(run, facts)


def read_points(folder: Path) -> list[Point]:
    """Read the finished runs of a grid, whatever budgets they are of; one that was not finite is told and left out.

    Raises:
        UserError: there is none.
    """
    points = []
    for path in sorted((folder / "runs").glob(f"*/{POINT_FILE}")):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["loss"] is None:
            print(f"{values['name']} is left out: {values['why']}", file=sys.stderr)
            continue
        points.append(from_plain(Point, values))
    if not points:
        raise UserError(f"{folder} holds no finished run")
    return sorted(points, key=lambda point: (point.budget, point.total, point.seed))
