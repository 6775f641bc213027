"""What to train with some hours of a machine, by the fit of a grid, with a recipe that can be run."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_llm.config import PretrainConfig, ScalingConfig, flatten, from_plain, to_plain
from lit_llm.config.files import replace_file
from lit_llm.config.yaml_text import write_yaml
from lit_llm.evaluation.scaling_report import advice_table, interval_text
from lit_llm.planning import find_gpu
from lit_llm.planning.scaling_family import GridPoint, Member, run_of
from lit_llm.planning.scaling_fit import Advice, ScalingFit

ADVICE_FILE = "pretrain.yaml"
_OTHER_SIZES = (0.5, 2.0)


@dataclass(frozen=True)
class HoursAdvice:
    """What to train in some hours."""

    best: Advice
    """The model and the length of its run."""
    text: str
    """In Markdown."""
    options: list[str]
    """Options of pretrain beside the recipe's."""


def advise_hours(fit: ScalingFit, config: ScalingConfig, passes_of: Any = None) -> HoursAdvice | None:
    """Say what to train in `config.hours`, and write it as a recipe beside the fit.

    Args:
        fit: of the grid.
        config: hours, and the machine that they are meant on.
        passes_of: how often a number of samples reads the grid's data; None: that is not said.

    Returns:
        None where the grid cannot tell.
    """
    assert config.hours is not None
    seconds = 3600 * config.hours
    if config.gpu is None:
        machine = f"the machine of the grid, at the speed of its runs{_share_of_threads(fit)}"

        def flops_of(member: Member) -> float:
            return seconds * fit.speed(member)
    else:
        name, gpu = find_gpu(config.gpu)
        machine = f"{config.num_gpus} x {name} at {config.mfu:.0%} of its peak"
        rate = config.num_gpus * gpu.peak_flops * config.mfu

        def flops_of(member: Member) -> float:
            return seconds * rate

    best = fit.advise_by(flops_of)
    if best is None:
        return None
    run = _run(fit, best)
    options = _options(fit, run)
    path = Path(config.output) / ADVICE_FILE
    replace_file(path, write_yaml(to_plain(run)))
    model = best.member.model
    hours = f"{config.hours:g} hour{'s' * (config.hours != 1)}"
    shape = f"width {model.hidden_size}, {model.num_layers} layers, {model.num_heads} heads"
    lines = [
        f"In {hours} on {machine}, {best.flops:.3g} operations: {best.member.total:,} parameters ({shape}) on "
        f"{best.tokens:,} tokens, {best.steps:,} steps.",
        advice_table(_rows(fit, best, flops_of)),
    ]
    if best.loss is None:
        lines.append("There is no law, so that no loss is expected; the size is by the power law of the parabolas.")
    elif fit.bits_per_nat is not None:
        lines.append(f"That is {best.loss * fit.bits_per_nat:.4f} bits per byte of the validation split.")
    far = fit.extrapolation(best.flops)
    notes = [] if far is None else [f"This is {far}."]
    passes = None if passes_of is None else passes_of(best.steps * run.data.batch_size)
    if passes is not None and passes > 1:
        notes.append(f"It reads the data of the grid {passes:,.3g} times, and the law knows of fresh data only.")
    if notes:
        lines.append("\n".join(notes))
    lines.append("The recipe at that size, and what it has beside the grid's:")
    lines.append(f"    lit-llm pretrain --config {shlex.quote(str(path))}")
    lines.append("\n".join(f"    {option}" for option in options))
    return HoursAdvice(best, "\n\n".join(lines), options)


def _share_of_threads(fit: ScalingFit) -> str:
    """What is to be said where several runs of the grid have shared the processor."""
    fewest = min((point.threads for point in fit.points if point.threads is not None), default=math.inf)
    threads = torch.get_num_threads()
    if fewest >= threads:
        return ""
    return f" (some had {fewest} of {threads} threads, and a run with all of them is faster)"


def _rows(fit: ScalingFit, best: Advice, flops_of: Any) -> list[list[str]]:
    """The best model between smaller and larger ones that take the same time."""
    rows = {best.member.index: ("best", best)}
    for share in _OTHER_SIZES:
        member = fit.family.nearest(share * fit.family.n(best.member.index))
        steps = int(flops_of(member) / member.flops_per_token / fit.tokens_per_step)
        if fit.law is not None and steps >= 1 and member.index not in rows:
            tokens = steps * fit.tokens_per_step
            loss, ends = fit.law.predict(member.count(fit.counted), float(tokens))
            name = "smaller" if share < 1 else "larger"
            rows[member.index] = (name, Advice(member, steps, tokens, tokens * member.flops_per_token, loss, ends))
    return [
        [
            name,
            f"{each.member.total:,}",
            f"{each.tokens:,}",
            f"{each.tokens / each.member.count(fit.counted):.3g}",
            f"{each.steps:,}",
            "" if each.loss is None else f"{each.loss:.4f}",
            interval_text(each.interval, ".4f"),
        ]
        for _, (name, each) in sorted(rows.items())
    ]


def _run(fit: ScalingFit, best: Advice) -> PretrainConfig:
    """The recipe at the size and length of an advice."""
    recipe = from_plain(PretrainConfig, fit.recipe)
    point = GridPoint(best.flops, best.member, best.steps, best.tokens, recipe.seed)
    run = run_of(point, recipe, fit.family.member(fit.family.own))
    return replace(run, run_name=f"scaled_{best.member.shape}", data=replace(run.data, validation_windows=None))


def _options(fit: ScalingFit, run: PretrainConfig) -> list[str]:
    """Options that differ from the recipe, one a line."""
    recipe, ours = flatten(fit.recipe), flatten(to_plain(run))
    groups = ("model.", "optimizer.", "schedule.", "trainer.")
    different = [name for name in ours if name.startswith(groups) and ours[name] != recipe.get(name)]
    return [f"--{name} {'null' if ours[name] is None else ours[name]}" for name in different]
