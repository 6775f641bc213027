"""The best size of a model for a budget, from the runs of that budget alone, and how it grows with the budget.

Source: Hoffmann et al. 2022 (Chinchilla), approach 2: a parabola over ln N for each budget, and a power law through the
lowest points. It needs no form of L(N, D), and says nothing about losses beyond the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lit_llm.planning.scaling_law import DRAWS

_LARGEST_POWER = 700.0  # of e, in a float


@dataclass(frozen=True)
class Parabola:
    """loss = least + curvature (ln N - ln parameters)^2 along one budget."""

    budget: float
    """Floating-point operations of each run."""
    least: float
    """The lowest loss."""
    parameters: float
    """N there."""
    tokens: float
    """D there."""
    curvature: float
    """How fast the loss rises; below 0 there is no lowest point."""
    smallest: float
    """Parameters of the smallest model of the budget."""
    largest: float
    """Parameters of the largest."""

    @property
    def is_bracketed(self) -> bool:
        """Whether the lowest point lies between models that were trained."""
        return self.curvature > 0 and self.smallest <= self.parameters <= self.largest

    def loss(self, parameters: float) -> float:
        """The parabola's loss for a number of parameters."""
        return self.least + self.curvature * math.log(parameters / self.parameters) ** 2


@dataclass(frozen=True)
class PowerLaw:
    """value = at_middle * (budget / middle)^exponent."""

    middle: float
    """A budget amid those of the fit: at a budget of 1 the value of a steep law is beyond what a float holds."""
    at_middle: float
    """The value there."""
    exponent: float

    def at(self, budget: float) -> float:
        """The value for a budget, as far as a float holds it."""
        power = math.log(self.at_middle) + self.exponent * math.log(budget / self.middle)
        return math.exp(np.clip(power, -_LARGEST_POWER, _LARGEST_POWER))


@dataclass(frozen=True)
class IsoFlopFit:
    """What the budgets say one by one."""

    parabolas: list[Parabola]
    """One for each budget with three sizes or more, the smallest budget first."""
    parameters: PowerLaw | None = None
    """The best N by budget; None where fewer than two budgets have their lowest point between their models."""
    tokens: PowerLaw | None = None
    """The best D by budget."""
    parameter_draws: list[PowerLaw] = field(default_factory=list)
    """The same from losses as other runs of the grid might have given them."""
    token_draws: list[PowerLaw] = field(default_factory=list)
    """Of the tokens."""

    def interval(self, draws: Sequence[PowerLaw], budget: float) -> tuple[float, float] | None:
        """95% interval of the best N or D for a budget; None where there are no draws."""
        return _quantiles([law.at(budget) for law in draws])

    def exponent_interval(self, draws: Sequence[PowerLaw]) -> tuple[float, float] | None:
        """95% interval of the exponent; None where there are no draws."""
        return _quantiles([law.exponent for law in draws])


def _quantiles(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < DRAWS // 2:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def fit_isoflop(
    budgets: Sequence[float],
    parameters: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    draws: int = DRAWS,
    seed: int = 0,
) -> IsoFlopFit:
    """Fit a parabola to each budget and a power law through their lowest points.

    The draws keep the grid and replace the losses by the parabolas' and a residual that is drawn with replacement from
    those of all budgets, widened for the three numbers of each parabola. A draw whose parabola opens downwards is left
    out; where that happens to half of them there is no interval.

    Args:
        budgets: C of each run.
        parameters: N of each run.
        tokens: D of each run.
        losses: in nats per token.
        draws: how many fits the intervals are taken from.
        seed: of the draws.
    """
    curves = [
        _Curve(
            budget,
            *(
                np.log([values[i] for i, each in enumerate(budgets) if each == budget])
                for values in (parameters, tokens)
            ),
            np.asarray([losses[i] for i, each in enumerate(budgets) if each == budget]),
        )
        for budget in sorted(set(budgets))
    ]
    curves = [curve for curve in curves if len(set(curve.sizes.round(6))) >= 3]
    parabolas = [curve.parabola(curve.losses) for curve in curves]
    used = [number for number, parabola in enumerate(parabolas) if parabola.is_bracketed]
    if len(used) < 2:
        return IsoFlopFit(parabolas)
    best = [parabolas[number] for number in used]
    fit = IsoFlopFit(parabolas, *_power_laws(best))
    fitted = {n: np.asarray([parabolas[n].loss(math.exp(size)) for size in curves[n].sizes]) for n in used}
    residuals = np.concatenate([curves[n].losses - fitted[n] for n in used])
    freedom = len(residuals) - 3 * len(used)
    if freedom > 0:
        wide, chance = residuals * math.sqrt(len(residuals) / freedom), np.random.default_rng(seed)
        for _ in range(draws):
            drawn = [curves[n].parabola(fitted[n] + chance.choice(wide, len(fitted[n]))) for n in used]
            if all(parabola.curvature > 0 for parabola in drawn):
                of_parameters, of_tokens = _power_laws(drawn)
                fit.parameter_draws.append(of_parameters)
                fit.token_draws.append(of_tokens)
    return fit


@dataclass(frozen=True)
class _Curve:
    """The runs of one budget, in logarithms but for the losses [n]."""

    budget: float
    sizes: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray

    def parabola(self, losses: np.ndarray) -> Parabola:
        """Fit the parabola to `losses` [n]."""
        centre = self.sizes.mean()
        curvature, slope, level = np.polyfit(self.sizes - centre, losses, 2)
        place = -slope / (2 * curvature) if curvature else math.nan
        # no lowest point is farther off than what a float holds
        place = float(np.clip(place, -100.0, 100.0))
        order = np.argsort(self.sizes)
        # along a budget ln D falls almost straight with ln N, beyond the grid as within
        slope_of_tokens, tokens = np.polyfit(self.sizes - centre, self.tokens, 1)
        at = centre + place
        inside = self.sizes[order[0]] <= at <= self.sizes[order[-1]]
        of_tokens = np.interp(at, self.sizes[order], self.tokens[order]) if inside else tokens + slope_of_tokens * place
        return Parabola(
            self.budget,
            float(level - curvature * place**2),
            math.exp(at),
            math.exp(np.clip(of_tokens, -200.0, 200.0)),
            float(curvature),
            math.exp(self.sizes[order[0]] - 1e-9),
            math.exp(self.sizes[order[-1]] + 1e-9),
        )


def _power_laws(parabolas: Sequence[Parabola]) -> tuple[PowerLaw, PowerLaw]:
    """Fit the power laws of the best N and the best D through the lowest points."""
    budgets = np.log([parabola.budget for parabola in parabolas])
    laws = []
    for values in ([each.parameters for each in parabolas], [each.tokens for each in parabolas]):
        exponent, level = np.polyfit(budgets - budgets.mean(), np.log(values), 1)
        laws.append(PowerLaw(math.exp(budgets.mean()), math.exp(level), float(exponent)))
    return laws[0], laws[1]
