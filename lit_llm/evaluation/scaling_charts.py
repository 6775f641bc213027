"""The pictures of a scaling fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_llm.evaluation.charts import SIZE
from lit_llm.evaluation.plots import line_plot
from lit_llm.planning.scaling_fit import Advice, ScalingFit

_STEPS = 60  # of a curve
_BEYOND = 10.0  # the curves over compute end at so many times the largest budget

Curve = tuple[list[float], list[float]]


def scaling_charts(fit: ScalingFit) -> list[str]:
    """Draw what a grid has shown; returns the pictures as SVG."""
    frontier = _frontier(fit)
    pictures = [_isoflop(fit), _over_compute(fit, frontier), _best_sizes(fit, frontier)]
    return [*pictures, _residuals(fit)] if fit.law is not None else pictures


def budget_name(budget: float) -> str:
    """A number of operations as a reader says it: 1e12."""
    return f"{budget:.3g}".replace("e+", "e")


def _between(low: float, high: float) -> list[float]:
    return [low * (high / low) ** (step / (_STEPS - 1)) for step in range(_STEPS)]


def _by_budget(fit: ScalingFit, values: Sequence[tuple[float, float]]) -> dict[str, Curve]:
    """Sort values of the points into dots by budget."""
    found: dict[str, Curve] = {}
    for point, (x, y) in zip(fit.points, values, strict=True):
        xs, ys = found.setdefault(budget_name(point.budget), ([], []))
        xs.append(x)
        ys.append(y)
    return found


def _isoflop(fit: ScalingFit) -> str:
    dots = _by_budget(fit, [(point.count(fit.counted), point.loss) for point in fit.points])
    curves: dict[str, Curve] = {name: ([], []) for name in dots}  # so that a budget has one colour in all pictures
    for parabola in fit.isoflop.parabolas:
        sizes = _between(parabola.smallest, parabola.largest)
        curves[budget_name(parabola.budget)] = (sizes, [parabola.loss(size) for size in sizes])
    return line_plot(
        curves,
        dots=dots,
        x_label=f"parameters ({fit.counted.replace('_', '-')})",
        y_label="nats per token",
        title="Loss by size, for each budget of operations",
        log_x=True,
        size=SIZE,
    )


def _frontier(fit: ScalingFit) -> list[tuple[float, Advice]]:
    """The law's best models over budgets, from the smallest of the grid to beyond the largest."""
    if fit.law is None:
        return []
    budgets = _between(min(point.flops for point in fit.points), _BEYOND * fit.largest_budget)[::3]
    found = ((budget, fit.advise(budget)) for budget in budgets)
    return [(budget, advice) for budget, advice in found if advice is not None]


def _over_compute(fit: ScalingFit, frontier: Sequence[tuple[float, Advice]]) -> str:
    curves: dict[str, Curve] = {}
    if frontier:
        budgets = [budget for budget, _ in frontier]
        curves["the law's best"] = (budgets, [advice.loss or math.nan for _, advice in frontier])
        ends = [advice.interval for _, advice in frontier if advice.interval is not None]
        if len(ends) == len(budgets):
            curves["95% from"] = (budgets, [low for low, _ in ends])
            curves["95% to"] = (budgets, [high for _, high in ends])
    dots = {"runs": ([point.flops for point in fit.points], [point.loss for point in fit.points])}
    lowest = [each for each in fit.isoflop.parabolas if each.is_bracketed]
    if lowest:
        dots["lowest of a parabola"] = ([each.budget for each in lowest], [each.least for each in lowest])
    return line_plot(
        curves,
        dots={**dots, **{name: ([], []) for name in curves}},
        x_label="floating-point operations",
        y_label="nats per token",
        title="Loss by compute",
        log_x=True,
        log_y=True,
        marks=[fit.largest_budget],
        size=SIZE,
    )


def _best_sizes(fit: ScalingFit, frontier: Sequence[tuple[float, Advice]]) -> str:
    curves: dict[str, Curve] = {}
    dots: dict[str, Curve] = {}
    if frontier:
        budgets = [budget for budget, _ in frontier]
        curves["N by the law"] = (budgets, [float(each.member.count(fit.counted)) for _, each in frontier])
        curves["D by the law"] = (budgets, [float(each.tokens) for _, each in frontier])
    if fit.isoflop.parameters is not None and fit.isoflop.tokens is not None:
        ends = [min(point.flops for point in fit.points), _BEYOND * fit.largest_budget]
        curves["N by parabolas"] = (ends, [fit.isoflop.parameters.at(end) for end in ends])
        curves["D by parabolas"] = (ends, [fit.isoflop.tokens.at(end) for end in ends])
        lowest = [each for each in fit.isoflop.parabolas if each.is_bracketed]
        dots["N by parabolas"] = ([each.budget for each in lowest], [each.parameters for each in lowest])
        dots["D by parabolas"] = ([each.budget for each in lowest], [each.tokens for each in lowest])
    return line_plot(
        curves,
        dots={**{name: ([], []) for name in curves}, **dots},
        x_label="floating-point operations",
        y_label="parameters, tokens",
        title="Best parameters N and tokens D",
        log_x=True,
        log_y=True,
        size=SIZE,
    )


def _residuals(fit: ScalingFit) -> str:
    assert fit.law is not None
    values = [
        (float(point.count(fit.counted)), 100 * math.expm1(residual))
        for point, residual in zip(fit.points, fit.law.residuals, strict=True)
    ]
    sizes = [x for x, _ in values]
    return line_plot(
        {},
        dots=_by_budget(fit, values),
        x_label=f"parameters ({fit.counted.replace('_', '-')})",
        y_label="% of the loss",
        title="What the law leaves over: run / law - 1",
        log_x=min(sizes) < max(sizes),
        size=SIZE,
    )
