"""Numbers with their intervals as a picture that a page can hold, in the manner of `plots`."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from lit_llm.evaluation.plots import COLORS, FONT, svg_opening

_ROW = 1.9 * FONT
_WIDTH = 400.0
_LONGEST_LABEL = 24


def dot_plot(
    values: Mapping[str, tuple[float, float, float]], title: str, *, digits: int = 0, mark: float | None = None
) -> str:
    """Draw a dot for each value with its interval as a line, one below the other, its name before and number behind.

    Args:
        values: of each name the value and the ends of its interval.
        title: stands above the picture.
        digits: decimals of the numbers.
        mark: a value that gets a dashed vertical line.

    Returns:
        An `<svg>` element; the same for the same input, and with text as text.
    """
    labels = {name: name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…" for name in values}
    numbers = {name: f"{value[0]:,.{digits}f}" for name, value in values.items()}
    left = 14 + 0.6 * FONT * max((len(label) for label in labels.values()), default=0)
    right = _WIDTH - 14 - 0.6 * FONT * max((len(number) for number in numbers.values()), default=1)
    ends = [end for value in values.values() for end in value] + ([] if mark is None else [mark])
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    scale = (right - left) / ((high - low) or 1.0)
    top = 2.2 * FONT
    bottom = top + _ROW * len(values)
    height = bottom + 1.6 * FONT
    parts = [
        *svg_opening(_WIDTH, height, title),
        f'<text x="6" y="{1.2 * FONT:.1f}" font-weight="bold">{escape(title)}</text>',
    ]
    if mark is not None:
        place = left + (mark - low) * scale
        parts.append(
            f'<path d="M{place:.1f} {top:.1f}V{bottom:.1f}" stroke="currentColor" stroke-opacity="0.6" '
            'stroke-dasharray="4 3"/>'
        )
    for number, (name, ends_of) in enumerate(values.items()):
        middle = top + _ROW * (number + 0.5)
        dot, begin, end = (left + (value - low) * scale for value in ends_of)
        parts += [
            f'<text x="{left - 8:.1f}" y="{middle + 0.35 * FONT:.1f}" text-anchor="end">{escape(labels[name])}</text>',
            f'<path d="M{begin:.1f} {middle:.1f}H{end:.1f}" stroke="{COLORS[0]}" stroke-width="2.5">'
            f"<title>{escape(name)}</title></path>",
            f'<circle cx="{dot:.1f}" cy="{middle:.1f}" r="4" fill="{COLORS[0]}"/>',
            f'<text x="{right + 8:.1f}" y="{middle + 0.35 * FONT:.1f}">{escape(numbers[name])}</text>',
        ]
    for place, end in ((left, low), (right, high)):
        parts.append(
            f'<text x="{place:.1f}" y="{bottom + FONT:.1f}" text-anchor="middle" fill-opacity="0.7">{end:,.{digits}f}'
            "</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
