"""Curves as pictures inside a page."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from lit_llm.evaluation.plots import MOST_POINTS, line_plot


def test_a_picture_says_what_it_shows_and_needs_nothing_from_elsewhere() -> None:
    curves = {"train/loss": ([1, 2, 3], [3.0, math.nan, 2.0]), "val/loss <b>": ([1, 3], [3.1, 2.2])}
    text = line_plot(curves, x_label="step", y_label="nats", title="Loss", log_y=True, marks=[2])
    picture = ElementTree.fromstring(text)
    words = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"step", "nats", "Loss", "train/loss", "val/loss <b>"} <= set(words)
    links = [value for element in picture.iter() for name, value in element.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links) and "<script" not in text
    assert text == line_plot(curves, x_label="step", y_label="nats", title="Loss", log_y=True, marks=[2])


def places(picture: str, tag: str, *names: str) -> list[tuple[float, ...]]:
    """Where the elements of a kind are."""
    found = [element for element in ElementTree.fromstring(picture).iter() if element.tag.endswith(tag)]
    return [tuple(float(element.get(name)) for name in names) for element in found]


@pytest.mark.parametrize("log", [False, True])
def test_points_are_where_their_numbers_say(log: bool) -> None:
    """Three points on a straight line in the scale of the axes, and a gap."""
    values = [1.0, 10.0, 100.0] if log else [1.0, 2.0, 3.0]
    text = line_plot({"a": (values, values)}, x_label="x", y_label="y", log_x=log, log_y=log)
    (x0, y0), (x1, y1), (x2, y2) = places(text, "circle", "cx", "cy")
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.2) and y1 == pytest.approx((y0 + y2) / 2, abs=0.2)
    assert x0 < x2 and y0 > y2  # larger is further up
    gap = line_plot(
        {"a": ([1, 2, 3, 4], [1.0, 0.0 if log else math.inf, 3.0, 4.0])}, x_label="x", y_label="y", log_y=log
    )
    assert len(places(gap, "circle", "cx")) == 3
    path = next(line for line in gap.splitlines() if 'stroke-width="1.6"' in line)
    assert path.count("M") == 2 and path.count("L") == 1


def test_a_long_curve_keeps_its_spike() -> None:
    values = [1.0] * 5_000
    values[3_210] = 9.0
    text = line_plot({"a": (range(5_000), values)}, x_label="x", y_label="y")
    path = re.search(r'd="(M[^"]*)" fill="none" stroke="#', text)[1]
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
    assert len(points) <= MOST_POINTS
    x, top = min(points, key=lambda point: point[1])
    left, right = points[0][0], points[-1][0]
    assert top < points[0][1] and (x - left) / (right - left) == pytest.approx(3_210 / 4_999, abs=0.005)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 10.0], ["0", "2.5", "5", "7.5", "10"]),
        ([0.0, 1_000_000.0], ["0", "250k", "500k", "750k", "1M"]),
        ([0.0, 1e-4], ["0", "2.5e-5", "5e-5", "7.5e-5", "1e-4"]),
        ([2.5, 2.5], ["2.3", "2.4", "2.5", "2.6", "2.7"]),
        ([], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ],
)
def test_numbers_on_the_axis(values: list[float], texts: list[str]) -> None:
    picture = ElementTree.fromstring(line_plot({"a": (range(len(values)), values)}, x_label="x", y_label="y"))
    shown = [element.text for element in picture.iter() if element.get("text-anchor") == "end"]
    assert shown == texts
