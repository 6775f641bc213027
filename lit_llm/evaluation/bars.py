"""Bars as pictures that a page can hold, in the manner of `plots`."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from lit_llm.evaluation.plots import COLORS, FONT, svg_opening

_ROW = 1.6 * FONT
_WIDTH = 400.0
_LONGEST_LABEL = 28


def bar_plot(values: Mapping[str, float], title: str) -> str:
    """Draw a bar for each value, one below the other, with its name before and its number behind it.

    Args:
        values: none of them is below 0.
        title: stands above the picture.

    Returns:
        An `<svg>` element; the same for the same input, and with text as text.
    """
    labels = {name: name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…" for name in values}
    left = 10 + 0.6 * FONT * max((len(label) for label in labels.values()), default=0)
    room = _WIDTH - left - 0.6 * FONT * max((len(f"{value:,.0f}") for value in values.values()), default=1) - 14
    largest = max(values.values(), default=0) or 1
    height = 2.2 * FONT + _ROW * len(values) + 4
    parts = [
        *svg_opening(_WIDTH, height, title),
        f'<text x="6" y="{1.2 * FONT:.1f}" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(values.items()):
        top = 2.2 * FONT + _ROW * number
        middle, length = top + 1.1 * FONT, room * value / largest
        parts.append(f'<text x="{left - 4:.1f}" y="{middle:.1f}" text-anchor="end">{escape(labels[name])}</text>')
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 2:.1f}" width="{max(length, 0.5):.1f}" height="{_ROW - 4:.1f}" '
            f'fill="{COLORS[0]}"><title>{escape(name)}</title></rect>'
        )
        parts.append(f'<text x="{left + length + 6:.1f}" y="{middle:.1f}">{value:,.0f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
