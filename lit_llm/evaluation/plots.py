"""Curves as pictures that a page can hold: SVG, without a file, a window or the network.

Lines and text take the colour of the text around the picture, so that it can be read on a dark page as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""For each curve's name the places on the x axis and the values there, as many of each."""

COLORS = ("#3b82c4", "#e07b39", "#3f9e5f", "#c2504f", "#8f6bb8", "#a9772f", "#d06fb0", "#2fa3a3")
"""Colours of the curves, in order; each has enough contrast on white and on near-black."""
MOST_POINTS = 400
"""A curve is drawn with at most so many points; a longer one keeps the lowest and highest value of each stretch."""
FONT = 12.0
"""Size of the letters in pictures, in points."""
_DIGIT = 0.6 * FONT  # width of a character


@dataclass(frozen=True)
class _Axis:
    """An axis, which turns numbers into places on the picture."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool

    def place(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / (high - low)
        return self.begin + share * (self.end - self.begin)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def svg_opening(width: float, height: float, title: str) -> list[str]:
    """Write the first lines of a picture.

    Args:
        width: in points.
        height: the same.
        title: what who cannot see it is told.
    """
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}pt" '
        f'height="{height:g}pt" role="img" font-family="system-ui, sans-serif" font-size="{FONT:g}" '
        'fill="currentColor">',
        f"<title>{escape(title)}</title>",
    ]


def line_plot(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[float] = (),
    dots: Series | None = None,
    size: tuple[float, float] = (6.4, 3.2),
) -> str:
    """Draw curves in one picture.

    Args:
        series: the curves; values that are not finite leave a gap, and so does what a logarithmic axis has no place
            for.
        x_label: what is on the x axis.
        y_label: what is on the y axis.
        title: stands above the picture.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is logarithmic.
        marks: places on the x axis that get a dashed vertical line.
        dots: points that no line goes through, in the colour of the curve of their name where there is one; a curve
            that has dots has no others.
        size: width and height in inches, at 72 points to the inch.

    Returns:
        An `<svg>` element; the same for the same input, and with text as text, so that it can be searched.
    """
    width, height = 72 * size[0], 72 * size[1]
    curves, alone = _points(series, log_x, log_y), _points(dots or {}, log_x, log_y)
    points = [point for curve in (*curves.values(), *alone.values()) for point in curve if point is not None]
    names = list(dict.fromkeys((*curves, *alone)))
    legend = _legend(names, width) if len(names) > 1 else []
    top = (1.7 * FONT if title else 0.0) + 1.5 * FONT * len(legend) + 8.0
    x_range = _range([x for x, _ in points] + list(marks), log_x, 0.0)
    y_range = _range([y for _, y in points], log_y, 0.04)
    y_ticks = _ticks(*y_range, log_y, 5)
    left = 2.2 * FONT + _DIGIT * max((len(text) for _, text in y_ticks), default=1)
    x_axis = _Axis(*x_range, left, width - 14.0, log_x)
    y_axis = _Axis(*y_range, height - 3.4 * FONT, top, log_y)
    parts = svg_opening(width, height, title or y_label)
    if title:
        parts.append(_text(left, 1.2 * FONT, title, "start", 'font-weight="bold"'))
    parts += _legend_parts(legend, left, (1.7 * FONT if title else 0.0) + 1.1 * FONT)
    parts += _frame(x_axis, y_axis, _ticks(*x_range, log_x, max(2, int(width / 90))), y_ticks)
    parts.append(_text((x_axis.begin + x_axis.end) / 2, height - 0.5 * FONT, x_label, "middle"))
    middle = (y_axis.begin + y_axis.end) / 2
    parts.append(_text(1.1 * FONT, middle, y_label, "middle", f'transform="rotate(-90 {1.1 * FONT:g} {middle:g})"'))
    parts += [_mark(x_axis.place(mark), y_axis) for mark in marks]
    for number, name in enumerate(names):
        color = COLORS[number % len(COLORS)]
        if name in curves:
            parts += _curve(name, curves[name], color, x_axis, y_axis, name not in alone)
        parts += _dots([point for point in alone.get(name, ()) if point is not None], color, x_axis, y_axis)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _mark(place: float, y_axis: _Axis) -> str:
    """A dashed vertical line."""
    return (
        f'<path d="M{place:.1f} {y_axis.begin:.1f}V{y_axis.end:.1f}" stroke="currentColor" stroke-opacity="0.6" '
        'stroke-dasharray="4 3"/>'
    )


def _points(given: Series, log_x: bool, log_y: bool) -> dict[str, list[tuple[float, float] | None]]:
    """The points of each curve, None where an axis has no place for one."""
    return {
        name: [_point(x, y, log_x, log_y) for x, y in zip(places, values, strict=True)]
        for name, (places, values) in given.items()
    }


def _point(x: float, y: float, log_x: bool, log_y: bool) -> tuple[float, float] | None:
    """Return the point, or None if it cannot be drawn."""
    if not (math.isfinite(x) and math.isfinite(y)) or (log_x and x <= 0) or (log_y and y <= 0):
        return None
    return float(x), float(y)


def _range(values: Sequence[float], is_log: bool, margin: float) -> tuple[float, float]:
    """Choose the ends of an axis that shows all values, and leaves a share of its length free on both sides."""
    if not values:
        return (1.0, 10.0) if is_log else (0.0, 1.0)
    low, high = min(values), max(values)
    if is_log:
        factor = (high / low) ** margin if high > low else 1.5
        return low / factor, high * factor
    extra = margin * (high - low) if high > low else (0.1 * abs(high) or 0.5)
    return low - extra, high + extra


def _ticks(low: float, high: float, is_log: bool, most: int) -> list[tuple[float, str]]:
    """Choose round numbers to write at an axis; returns each with its text."""
    if is_log and high / low >= 5:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        leads = (1, 2, 5) if last - first < 2 else (1,)
        every = 1 + max(0, last - first) // max(most, 1)
        found = [lead * 10.0**power for power in range(first - 1, last + 1, every) for lead in leads]
        return [(value, _short(value)) for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    values = [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(value, _short(value, step)) for value in values]


def _short(value: float, step: float | None = None) -> str:
    """Write a number for an axis; `step` is the distance between two numbers there."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or (step is None and abs(value) >= 1e12):
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and (step is None or step >= size / 1000):
            return f"{value / size:.6g}{letter}" if step is None else f"{_fixed(value / size, step / size)}{letter}"
    return f"{value:.6g}" if step is None else _fixed(value, step)


def _fixed(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step)) + (1 if f"{step:e}".startswith("2.5") else 0))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _frame(
    x_axis: _Axis, y_axis: _Axis, x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]]
) -> list[str]:
    """Draw the grid, the axes and their numbers."""
    grid = "".join(f"M{x_axis.begin:.1f} {y_axis.place(y):.1f}H{x_axis.end:.1f}" for y, _ in y_ticks)
    grid += "".join(f"M{x_axis.place(x):.1f} {y_axis.begin:.1f}V{y_axis.end:.1f}" for x, _ in x_ticks)
    axes = f"M{x_axis.begin:.1f} {y_axis.end:.1f}V{y_axis.begin:.1f}H{x_axis.end:.1f}"
    numbers = [_text(x_axis.place(x), y_axis.begin + 1.3 * FONT, text, "middle") for x, text in x_ticks]
    numbers += [_text(x_axis.begin - 5, y_axis.place(y) + 0.35 * FONT, text, "end") for y, text in y_ticks]
    return [
        f'<path d="{grid}" fill="none" stroke="currentColor" stroke-opacity="0.15"/>',
        f'<path d="{axes}" fill="none" stroke="currentColor" stroke-opacity="0.7"/>',
        *numbers,
    ]


def _curve(
    name: str, curve: Sequence[tuple[float, float] | None], color: str, x_axis: _Axis, y_axis: _Axis, marked: bool
) -> Iterator[str]:
    """Draw one curve as a path, and mark its points if that is wanted and they are few."""
    places = [None if point is None else (x_axis.place(point[0]), y_axis.place(point[1])) for point in _thinned(curve)]
    path, pen_is_down = [], False
    for place in places:
        if place is not None:
            path.append(f"{'L' if pen_is_down else 'M'}{place[0]:.1f} {place[1]:.1f}")
        pen_is_down = place is not None
    yield f'<path d="{"".join(path)}" fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round">'
    yield f"<title>{escape(name)}</title></path>"
    if marked and len(places) < 30:
        yield from _dots([point for point in curve if point is not None], color, x_axis, y_axis)


def _dots(points: Sequence[tuple[float, float]], color: str, x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    for x, y in points:
        yield f'<circle cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="2.4" fill="{color}"/>'


def _thinned(curve: Sequence[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """Keep at most `MOST_POINTS` of a curve: the lowest and highest value of each stretch, so that spikes stay."""
    if len(curve) <= MOST_POINTS:
        return list(curve)
    stretches = MOST_POINTS // 2
    kept: list[tuple[float, float] | None] = []
    for number in range(stretches):
        part = curve[number * len(curve) // stretches : (number + 1) * len(curve) // stretches]
        real = [(point[1], index) for index, point in enumerate(part) if point is not None]
        if not real:
            kept.append(None)
            continue
        kept += [part[index] for index in sorted({min(real)[1], max(real)[1]})]
    return kept


def _legend(names: Sequence[str], width: float) -> list[list[tuple[float, int, str]]]:
    """Arrange a legend in lines; each entry is its distance from the left, the curve's number and its name."""
    lines: list[list[tuple[float, int, str]]] = [[]]
    place = 0.0
    for number, name in enumerate(names):
        length = 26 + _DIGIT * len(name) + 10
        if lines[-1] and place + length > width - 60:
            lines.append([])
            place = 0.0
        lines[-1].append((place, number, name))
        place += length
    return lines


def _legend_parts(lines: Sequence[Sequence[tuple[float, int, str]]], left: float, top: float) -> Iterator[str]:
    for row, line in enumerate(lines):
        y = top + 1.5 * FONT * row
        for offset, number, name in line:
            x = left + offset
            color = COLORS[number % len(COLORS)]
            yield f'<path d="M{x:.1f} {y - 0.35 * FONT:.1f}h18" stroke="{color}" stroke-width="3"/>'
            yield _text(x + 23, y, name, "start")


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
