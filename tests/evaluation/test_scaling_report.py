"""The report of a scaling fit: its pictures, its tables and what it warns of."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from conftest import tiny_model

from lit_llm.config import PretrainConfig, to_plain
from lit_llm.evaluation.plots import line_plot
from lit_llm.evaluation.scaling_charts import budget_name, scaling_charts
from lit_llm.evaluation.scaling_report import sections_of, write_scaling_report
from lit_llm.planning.scaling_fit import Point, ScalingFit, fit_points
from lit_llm.planning.scaling_law import ScalingLaw

LAW = ScalingLaw(1.8, 482.0, 2085.0, 0.348, 0.366)


def fit_of(budgets: list[float], shares: list[float]) -> ScalingFit:
    """The fit of exact losses, each budget with sizes around its best."""
    run = PretrainConfig(model=tiny_model())
    run.data.sequence_length, points = 32, []
    for budget in budgets:
        for number, share in enumerate(shares):
            n = round(LAW.optimum(budget)[0] * share)
            d = round(budget / 6 / n)
            loss = LAW.loss(n, d) * (1 + 2e-3 * math.sin(7 * n))  # some scatter, the same each time
            points.append(
                Point(
                    f"{budget}-{n}",
                    budget,
                    6.0 * n * d,
                    number + 1,
                    n,
                    n // 2,
                    d,
                    d,
                    1,
                    1e-3,
                    9,
                    0.5,
                    6.0 * n,
                    loss,
                    None,
                    60.0,
                )
            )
    return fit_points(points, to_plain(run), "total")


def test_the_report_shows_runs_parabolas_and_law(tmp_path: Path) -> None:
    fit = fit_of([1e10, 1e11, 1e12], [0.3, 0.6, 1.0, 1.7, 3.0])
    pictures = scaling_charts(fit)
    assert len(pictures) == 4 and pictures[0].count("<circle") == 15 == pictures[3].count("<circle")
    for name in ("1e10", "1e11", "1e12"):
        assert f">{name}</text>" in pictures[0] and f"<title>{name}</title>" in pictures[0]
    assert pictures[1].count("<circle") == 15 + 3  # the runs, and the lowest of each parabola
    sections = dict(sections_of(fit))
    law = sections["L(N, D) = E + A / N^alpha + B / D^beta"]
    beta = re.search(r"\| beta \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", law)
    assert (
        beta is not None
        and float(beta[2]) < 0.366 < float(beta[3])
        and float(beta[1]) == pytest.approx(0.366, abs=0.05)
    )
    best = re.search(r"\| 1e11 \| ([\d.e+]+) \|", sections["The best size of each budget"])
    assert best is not None and float(best[1]) == pytest.approx(LAW.optimum(1e11)[0], rel=0.3)
    assert sections["Runs"].count("\n") == 1 + 15
    files = write_scaling_report(tmp_path, fit, "Train <this>.")
    assert [path.name for path in files] == ["scaling.md", "scaling.html"]
    page = files[1].read_text()
    assert page.count("<svg") == 4 and "Train &lt;this&gt;." in page and "<script" not in page


def test_what_a_grid_does_not_show_is_said() -> None:
    below = fit_of([1e10, 1e11], [0.05, 0.1, 0.2, 0.4])
    assert any("lies above its largest model" in line for line in below.lines)
    assert all(row[1] == "not between its models" for row in _rows(below))
    few = fit_of([1e10, 1e11], [0.5, 1.0])
    assert few.law is None and few.lines[0].startswith("no law: the law has 5 numbers and the grid 4 different points")
    assert any(line.startswith("no parabola for 1e+10, 1e+11 operations") for line in few.lines)
    assert len(scaling_charts(few)) == 3 and few.advise(1e11) is None
    five = fit_of([1e10, 1e11], [0.5, 1.0, 2.0])
    assert any("6 runs leave nothing to judge a law of five numbers by" in line for line in five.lines)


def _rows(fit: ScalingFit) -> list[list[str]]:
    from lit_llm.evaluation.scaling_report import isoflop_rows

    return isoflop_rows(fit)


def test_dots_have_the_colour_of_their_curve_and_no_line() -> None:
    curve = {"one": ([1.0, 2.0], [1.0, 2.0])}
    plain = line_plot(curve, x_label="x", y_label="y")
    dotted = line_plot(curve, dots={"one": ([1.5], [5.0]), "two": ([3.0], [1.0])}, x_label="x", y_label="y")
    assert plain.count("<circle") == 2 and dotted.count("<circle") == 2
    assert dotted.count("<path") == plain.count("<path") + 2  # the legend's two lines
    colours = re.findall(r'<circle [^>]*fill="(#\w+)"', dotted)
    assert colours[0] in plain and colours[0] != colours[1]
    assert ">two</text>" in dotted and budget_name(3.2e13) == "3.2e13"
