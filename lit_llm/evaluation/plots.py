"""Curves as pictures that a page can hold: SVG, without a file, a window or the network."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""For each curve's name the places on the x axis and the values there, as many of each."""


def line_plot(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[float] = (),
    size: tuple[float, float] = (6.4, 3.2),
) -> str:
    """Draw curves in one picture.

    Args:
        series: the curves; values that are not finite leave a gap.
        x_label: what is on the x axis.
        y_label: what is on the y axis.
        title: stands above the picture.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is logarithmic.
        marks: places on the x axis that get a dashed vertical line.
        size: width and height in inches, at 72 points to the inch.

    Returns:
        An `<svg>` element; the same for the same input, and with text as text, so that it can be searched.
    """
    # imported here: half a second that only a report needs
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lit_llm", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for name, (places, values) in series.items():
            axes.plot(places, values, label=name, linewidth=1.2, marker="." if len(places) < 30 else None)
        for place in marks:
            axes.axvline(place, color="0.5", linestyle="--", linewidth=0.8)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend(frameon=False)
        picture = io.StringIO()
        FigureCanvasSVG(figure).print_svg(picture, metadata={"Date": None, "Creator": None})
    text = picture.getvalue()
    return text[text.index("<svg") :]
