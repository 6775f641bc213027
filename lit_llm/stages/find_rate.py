"""A sweep over learning rates: a few steps with each, from the same weights and on the same batches."""

from __future__ import annotations

import copy
import html
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L

from lit_llm.config import (
    DPOConfig,
    NonFiniteStep,
    PretrainConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
    UserError,
)
from lit_llm.config.files import replace_file
from lit_llm.evaluation.plots import line_plot
from lit_llm.planning import count_parameters
from lit_llm.stages.dpo import build_dpo
from lit_llm.stages.pretrain import build_pretraining
from lit_llm.stages.reward import build_reward
from lit_llm.stages.sft import build_sft
from lit_llm.stages.short_runs import shortened, train_short

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Rates that are tried where none are given, as multiples of the default."""
AS_GOOD = 0.01
"""Losses that are so close to the best, as a share of it, are as good: of those the lowest rate is suggested."""

_BUILD: dict[type[Any], Callable[[Any], Any]] = {
    PretrainConfig: build_pretraining,
    SFTConfig: build_sft,
    RewardConfig: build_reward,
    DPOConfig: build_dpo,
}


@dataclass
class RateTrial:
    """A few steps with one rate."""

    rate: float
    """Peak rate of AdamW."""
    losses: list[float]
    """Training loss of each step, up to the first that was not finite."""
    validation_loss: float | None
    """Loss on the validation split after the last step; None where there is no split, or the trial came to nothing."""
    finite: bool
    """Whether every step was."""

    @property
    def score(self) -> float:
        """What it is judged by, lower is better: the validation loss, else the mean of the last quarter's losses."""
        if not self.finite:
            return math.inf
        if self.validation_loss is not None:
            return self.validation_loss
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return math.fsum(last) / len(last)


@dataclass
class RateSweep:
    """What a sweep has shown."""

    stage: str
    """The stage."""
    parameters: int
    """Of the model."""
    default: float
    """The rate that a run takes where none is given, or the one that was given."""
    trials: list[RateTrial]
    """One for each rate, the lowest first."""
    muon_default: float | None = None
    """Muon's rate beside `default`, which every trial multiplies along; None where the run has no Muon."""

    @property
    def best(self) -> RateTrial:
        """The trial with the lowest loss."""
        return min(self.trials, key=lambda trial: trial.score)

    @property
    def suggestion(self) -> float:
        """The lowest rate as good as the best: short runs favour high rates, so that a longer one wants no more.

        Raises:
            UserError: no trial stayed finite.
        """
        best = self.best.score
        if not math.isfinite(best):
            raise UserError("no loss stayed finite: give --rates lower ones, or look at the data")
        return next(trial.rate for trial in self.trials if trial.score <= best + AS_GOOD * abs(best))

    def muon_rate(self, rate: float) -> float | None:
        """Muon's rate beside an AdamW of `rate`, in two digits; None where the run has no Muon."""
        return None if self.muon_default is None else float(f"{self.muon_default * rate / self.default:.1e}")

    @property
    def at_the_edge(self) -> bool:
        """Whether rates beyond those that were tried may be better still."""
        return self.best is self.trials[0] or self.best is self.trials[-1]


def find_rate(
    run: RunConfig,
    rates: Sequence[float] | None = None,
    steps: int = 40,
    tell: Callable[[RateTrial], None] = lambda trial: None,
) -> RateSweep:
    """Train for `steps` with each rate, on one device, and compare; leaves no run folder behind.

    Args:
        run: of pretraining, SFT, a reward model or DPO. Its schedule is squeezed into `steps`; where it uses Muon, the
            rate of that is multiplied along.
        rates: to try; None: `FACTORS` times the run's own, or the default of stage and model.
        steps: with each rate.
        tell: is called after each trial.

    Raises:
        UserError: as the stage itself, or `run` is of another stage.
    """
    if type(run) not in _BUILD:
        raise UserError(f"a rate can be found for pretrain, sft, reward and dpo, not for {run.stage}")
    build = _BUILD[type(run)]
    with tempfile.TemporaryDirectory(prefix="find_rate_") as folder:
        whole = copy.deepcopy(run)
        whole.trainer = whole.trainer.on_one_device()
        build(whole)  # fills in what the run leaves open, and how long it is
        first = shortened(whole, folder, steps)
        default = first.optimizer.learning_rate
        assert default is not None
        tried = sorted({float(f"{factor * default:.1e}") for factor in FACTORS} if rates is None else set(rates))
        muon = first.optimizer.muon_learning_rate if first.optimizer.name == "muon" else None
        sweep = RateSweep(run.stage, count_parameters(first.model), default, [], muon)
        for rate in tried:
            trial = copy.deepcopy(first)
            trial.optimizer = replace(trial.optimizer, learning_rate=rate, muon_learning_rate=sweep.muon_rate(rate))
            sweep.trials.append(_try(trial, build))
            tell(sweep.trials[-1])
    return sweep


class _Losses(L.Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the loss of a step that has just ended."""
        if trainer.global_step > len(self.values):
            self.values.append(float(trainer.callback_metrics["train/loss"]))


def _try(config: Any, build: Callable[[Any], Any]) -> RateTrial:
    """The steps with the rate of `config`."""
    losses = _Losses()
    try:
        validated = train_short(config, build, [losses]).get("val/loss")
    except NonFiniteStep:
        return RateTrial(config.optimizer.learning_rate, losses.values, None, False)
    finite = all(map(math.isfinite, losses.values)) and (validated is None or math.isfinite(validated))
    return RateTrial(config.optimizer.learning_rate, losses.values, validated if finite else None, finite)


def write_page(sweep: RateSweep, path: Path) -> None:
    """Write the sweep as one HTML file that loads nothing: loss by rate, the curves, and the numbers."""
    finite = [trial for trial in sweep.trials if trial.finite]
    by_rate = line_plot(
        {"loss": ([trial.rate for trial in finite], [trial.score for trial in finite])},
        x_label="learning rate",
        y_label="loss at the end",
        log_x=True,
        marks=[sweep.suggestion],
    )
    curves = line_plot(
        {f"{trial.rate:g}": (range(1, len(trial.losses) + 1), trial.losses) for trial in sweep.trials},
        x_label="step",
        y_label="training loss",
    )
    header, *rows = table_of(sweep)
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    names = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    title = f"Learning rates for {sweep.stage} of {sweep.parameters:,} parameters"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 15px system-ui, sans-serif; max-width: 50em; margin: 2em auto; }}
td, th {{ padding: .2em 1em; text-align: right; }}</style></head>
<body><h1>{title}</h1><p>{html.escape(verdict(sweep))}</p>
{by_rate}
{curves}
<table><tr>{names}</tr>
{cells}</table></body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page)


def table_of(sweep: RateSweep) -> list[list[str]]:
    """A header, and a row of text for each trial."""
    rows = [["rate", "loss at the start", "at the end", "on validation", ""]]
    for trial in sweep.trials:
        first, last = ("", "") if not trial.losses else (f"{trial.losses[0]:.4f}", f"{trial.losses[-1]:.4f}")
        validation = "" if trial.validation_loss is None else f"{trial.validation_loss:.4f}"
        notes = ["not finite"] * (not trial.finite) + ["suggested"] * (trial.rate == sweep.suggestion)
        notes += ["the default"] * (trial.rate == sweep.default)
        rows.append([f"{trial.rate:g}", first, last, validation, ", ".join(notes)])
    return rows


def verdict(sweep: RateSweep) -> str:
    """The suggestion and its reason in a sentence."""
    best, chosen = sweep.best, sweep.suggestion
    line = f"suggested: --optimizer.learning_rate {chosen:g}"
    if sweep.muon_default is not None:
        line += f" --optimizer.muon_learning_rate {sweep.muon_rate(chosen):g}"
    if chosen == best.rate:
        line += f", the best of {len(sweep.trials)}"
    else:
        line += f", within {AS_GOOD:.0%} of the best ({best.rate:g}), and a longer run wants no higher rate"
    if sweep.at_the_edge:
        line += f"; {best.rate:g} is the last that was tried on that side, and --rates can go further"
    return line
