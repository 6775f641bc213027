"""Which curves of metrics.jsonl stand together in one picture, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_llm.evaluation.plots import Series, line_plot

SIZE = (5.6, 3.1)
"""Width and height of each picture in inches, small enough that its text can be read on a phone."""
_NO_CURVES = ("step", "tokens", "seconds")


@dataclass(frozen=True)
class Chart:
    """Curves that are drawn in one picture."""

    title: str
    y_label: str
    names: tuple[str, ...]
    """Their names in metrics.jsonl; one that ends with "/" stands for all that begin so."""

    @property
    def prefix(self) -> str:
        """The beginning of the curves' names that is left out in the picture, as the title says it."""
        return self.names[0] if self.names[0].endswith("/") else ""

    def found(self, known: Sequence[str]) -> list[str]:
        """Pick the chart's curves from the known ones, in the chart's order."""
        return [
            name for one in self.names for name in known if name == one or (one[-1] == "/" and name.startswith(one))
        ]


MAIN_CHARTS = (
    Chart("Loss", "loss", ("train/loss", "val/loss")),
    Chart("Reward", "reward", ("objective/scores", "objective/rlhf_reward", "val/reward")),
    Chart("Distance from the reference", "KL in nats", ("objective/kl",)),
    Chart("Length of answers", "tokens", ("objective/response_length", "val/response_length")),
    Chart(
        "Accuracy",
        "share",
        ("train/accuracy", "val/accuracy", "rewards/accuracies", "val/rewards/accuracies", "val/token_accuracy"),
    ),
    Chart("Margin", "chosen - rejected", ("train/margin", "val/margin", "rewards/margins", "val/rewards/margins")),
    Chart("Learning rate", "rate", ("learning_rate/",)),
    Chart("Gradient norm", "norm before clipping", ("train/gradient_norm",)),
    Chart("Speed", "tokens per second", ("throughput/tokens_per_second",)),
)
"""The pictures that a report shows first. A stage has those of the curves that it logs."""


def curve_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names of all curves, sorted."""
    return sorted({name for line in lines for name in line if name not in _NO_CURVES})


def curve(lines: Sequence[Mapping[str, Any]], name: str, over: str = "step") -> tuple[list[float], list[float]]:
    """Pick one curve from the lines of metrics.jsonl.

    Args:
        lines: of the file.
        name: of the curve.
        over: what is on the x axis: step, tokens or seconds.

    Returns:
        The places on the x axis, and the values there.
    """
    points = [(line.get(over), line.get(name)) for line in lines]
    real = [(x, y) for x, y in points if _is_number(x) and _is_number(y)]
    return [x for x, _ in real], [y for _, y in real]


def main_charts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw the pictures of `MAIN_CHARTS` that a run has curves for; returns them as SVG."""
    known = curve_names(lines)
    found = [(chart, chart.found(known)) for chart in MAIN_CHARTS]
    return [
        draw(chart, {name.removeprefix(chart.prefix): curve(lines, name) for name in names})
        for chart, names in found
        if names
    ]


def more_charts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw all other curves, training and validation curves of one name together; returns the pictures as SVG."""
    known = curve_names(lines)
    shown = {name for chart in MAIN_CHARTS for name in chart.found(known)}
    groups: dict[str, list[str]] = {}
    for name in known:
        if name not in shown:
            groups.setdefault(name.removeprefix("val/").removeprefix("train/"), []).append(name)
    return [
        draw(Chart(title, title.rpartition("/")[2], tuple(names)), {name: curve(lines, name) for name in names})
        for title, names in sorted(groups.items())
    ]


def draw(chart: Chart, series: Series, over: str = "step") -> str:
    """Draw a chart; returns it as SVG."""
    return line_plot(series, x_label=over, y_label=chart.y_label, title=chart.title, size=SIZE)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
