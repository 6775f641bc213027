"""What a grid of runs says together: the law, the best size by budget, and what to train with a budget or a time."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config import ModelConfig, UserError, from_plain
from lit_llm.planning.scaling_family import Counted, Family, Member
from lit_llm.planning.scaling_isoflop import IsoFlopFit, Parabola, PowerLaw, fit_isoflop
from lit_llm.planning.scaling_law import EXPONENTS, LawFit, ScalingLaw, fit_law, unidentified

SCALING_FILE = "scaling.json"
FORMAT = 2
FAR = 10.0
"""A prediction for more than so many times the largest budget of the grid is called an extrapolation."""


@dataclass(frozen=True)
class Point:
    """A finished run of a grid."""

    name: str
    """Of its folder."""
    budget: float
    """Floating-point operations that it was to take."""
    flops: float
    """That it took: tokens times those of one."""
    index: int
    """The member of the family."""
    total: int
    """Its parameters."""
    non_embedding: int
    """Those without embeddings and head."""
    tokens: int
    """Tokens read."""
    steps: int
    """Optimizer steps."""
    seed: int
    """Of weights and order."""
    learning_rate: float
    """The peak."""
    warmup_steps: int
    """Steps of warm-up."""
    passes: float
    """How often the data was read."""
    flops_per_token: float
    """Of the model."""
    loss: float
    """On the validation split at the end, in nats per token."""
    bits_per_byte: float | None
    """The same by bytes of text; None where the tokenizer does not say them."""
    seconds: float
    """How long it took, validation included."""
    threads: int | None = None
    """Threads of the processor that it had; None on a GPU."""

    def count(self, counted: Counted) -> int:
        """N."""
        return self.total if counted == "total" else self.non_embedding


@dataclass(frozen=True)
class Advice:
    """What to train with a budget."""

    member: Member
    """The model."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens in them."""
    flops: float
    """Floating-point operations."""
    loss: float | None
    """Expected, in nats per token; None where there is no law."""
    interval: tuple[float, float] | None
    """Where a run's loss falls in 95 of 100 cases, if the law holds there."""


@dataclass
class ScalingFit:
    """What a grid has shown; `scaling.json` holds it."""

    recipe: dict[str, Any]
    """The pretraining recipe, plain."""
    counted: Counted
    """What N counts."""
    points: list[Point]
    """The finished runs."""
    law: LawFit | None
    """L(N, D); None where the runs cannot tell its numbers apart."""
    isoflop: IsoFlopFit
    """The budgets one by one."""
    lines: list[str] = field(default_factory=list)
    """What is to be said of the fit."""

    def __post_init__(self) -> None:
        self.model = from_plain(ModelConfig, self.recipe["model"])
        self.length: int = self.recipe["data"]["sequence_length"]
        self.tokens_per_step: int = self.recipe["data"]["batch_size"] * self.length
        self.family = Family(self.model, self.length, self.counted)

    @property
    def largest_budget(self) -> float:
        """Operations of the largest run."""
        return max(point.flops for point in self.points)

    @property
    def bits_per_nat(self) -> float | None:
        """Bits per byte for each nat per token, which is one number for one validation split."""
        ratios = [point.bits_per_byte / point.loss for point in self.points if point.bits_per_byte is not None]
        return float(np.median(ratios)) if ratios else None

    def extrapolation(self, flops: float) -> str | None:
        """A line for a budget far beyond the grid; None within reach."""
        times = flops / self.largest_budget
        if times <= FAR:
            return None
        return (
            f"an extrapolation: {flops:.3g} operations are {times:,.3g} times the largest run of the grid "
            f"({self.largest_budget:.3g}), and no interval knows whether the law holds so far out"
        )

    def speed(self, member: Member) -> float:
        """Operations per second on the machine of the grid; beyond its largest model, as that one's."""
        known: dict[float, list[float]] = {}
        for point in self.points:
            known.setdefault(point.flops_per_token, []).append(point.flops / max(point.seconds, 1e-9))
        sizes = sorted(known)
        speeds = [math.log(float(np.median(known[size]))) for size in sizes]
        return math.exp(float(np.interp(math.log(member.flops_per_token), np.log(sizes), speeds)))

    def advise(self, flops: float) -> Advice | None:
        """What to train with a budget of operations; see `advise_by`."""
        return self.advise_by(lambda member: flops)

    def advise_seconds(self, seconds: float) -> Advice | None:
        """What to train in a time on the machine of the grid; see `advise_by`."""
        return self.advise_by(lambda member: seconds * self.speed(member))

    def advise_by(self, flops_of: Callable[[Member], float]) -> Advice | None:
        """Find the model of the lowest predicted loss; without a law that of the power law of the best sizes.

        Args:
            flops_of: operations that there are for a member.

        Returns:
            None where neither is there, or the budget is not enough for a step of the smallest.
        """
        if self.law is not None:
            law = self.law.law
            member = self.family.best(
                lambda each: flops_of(each) / each.flops_per_token, law.loss, float(self.tokens_per_step)
            )
        elif self.isoflop.parameters is not None:
            member = self.family.nearest(self.isoflop.parameters.at(flops_of(self.family.member(self.family.own))))
        else:
            return None
        steps = int(flops_of(member) / member.flops_per_token / self.tokens_per_step)
        if steps < 1:
            return None
        tokens = steps * self.tokens_per_step
        loss, interval = (
            (None, None) if self.law is None else self.law.predict(member.count(self.counted), float(tokens))
        )
        return Advice(member, steps, tokens, tokens * member.flops_per_token, loss, interval)

    def as_plain(self) -> dict[str, Any]:
        """The fit as JSON takes it."""
        return {
            "format": FORMAT,
            "counted": self.counted,
            "recipe": self.recipe,
            "points": [asdict(point) for point in self.points],
            "law": None if self.law is None else asdict(self.law),
            "isoflop": asdict(self.isoflop),
            "lines": self.lines,
        }


def read_fit(folder: Path) -> ScalingFit:
    """Read the fit that `lit-llm scaling` has left in a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path, command = folder / SCALING_FILE, f"lit-llm scaling --output {shlex.quote(str(folder))}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise UserError(f"{path} is of format {values['format']}; run {command} again")
        law, isoflop = values["law"], values["isoflop"]
        if law is not None:
            draws = [from_plain(ScalingLaw, each) for each in law["draws"]]
            law = LawFit(from_plain(ScalingLaw, law["law"]), law["residuals"], draws)
        powers = {name: _power(isoflop[name]) for name in ("parameters", "tokens")}
        draws_of = {name: list(map(_power, isoflop[name])) for name in ("parameter_draws", "token_draws")}
        parabolas = [from_plain(Parabola, each) for each in isoflop["parabolas"]]
        points = [from_plain(Point, each) for each in values["points"]]
        return ScalingFit(
            values["recipe"],
            values["counted"],
            points,
            law,
            IsoFlopFit(parabolas, **powers, **draws_of),  # type: ignore[arg-type]
            values["lines"],
        )
    except FileNotFoundError:
        raise UserError(f"there is no {path}; {command} writes it") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); {command} writes it again") from error


def _power(values: dict[str, Any] | None) -> PowerLaw | None:
    return None if values is None else from_plain(PowerLaw, values)


def fit_points(points: Sequence[Point], recipe: dict[str, Any], counted: Counted) -> ScalingFit:
    """Fit everything to finished runs.

    Args:
        points: the runs.
        recipe: plain options of pretraining, with vocabulary and length known.
        counted: what N counts.
    """
    budgets, losses = [point.budget for point in points], [point.loss for point in points]
    sizes, tokens = [float(point.count(counted)) for point in points], [float(point.tokens) for point in points]
    lines = []
    why = unidentified(budgets, sizes, tokens)
    if why is not None:
        lines.append(f"no law: {why}")
    law = fit_law(sizes, tokens, losses) if why is None else None
    isoflop = fit_isoflop(budgets, sizes, tokens, losses)
    lines += [*_doubts_of_law(law), *_doubts_of_isoflop(isoflop, set(budgets))]
    return ScalingFit(recipe, counted, list(points), law, isoflop, lines)


def _doubts_of_law(fit: LawFit | None) -> list[str]:
    if fit is None:
        return []
    if not fit.draws:
        return [f"{len(fit.residuals)} runs leave nothing to judge a law of five numbers by: there are no intervals"]
    lines, law = [], fit.law
    ends = fit.interval(lambda each: each.irreducible)
    assert ends is not None
    if ends[1] - ends[0] > 0.5 * law.irreducible or law.irreducible < 1e-2:
        lines.append(
            f"E is not determined by these runs ({law.irreducible:.3f}, 95% interval {ends[0]:.3f} to {ends[1]:.3f}): "
            "losses near those of the grid can be predicted, and those far beyond it cannot"
        )
    for name, exponent in (("alpha", law.model_exponent), ("beta", law.data_exponent)):
        if not 2 * EXPONENTS[0] < exponent < 0.9 * EXPONENTS[1]:
            of = "size of the model" if name == "alpha" else "data"
            lines.append(
                f"{name} came out as {exponent:.3g}, where the search ends: the runs hardly show what the {of} does to "
                "the loss"
            )
    return lines


def _doubts_of_isoflop(fit: IsoFlopFit, budgets: set[float]) -> list[str]:
    lines = []
    few = sorted(budgets - {parabola.budget for parabola in fit.parabolas})
    if few:
        named = ", ".join(f"{budget:.3g}" for budget in few)
        lines.append(f"no parabola for {named} operations: it takes three sizes of model")
    for parabola in fit.parabolas:
        if not parabola.is_bracketed:
            side = "above its largest model" if parabola.parameters > parabola.largest else "below its smallest model"
            if parabola.curvature <= 0:
                side = "at none of its models: the losses do not curve upwards"
            lines.append(
                f"the lowest loss of {parabola.budget:.3g} operations lies {side}; --sizes or --tokens_per_parameter "
                "moves them"
            )
    return lines
