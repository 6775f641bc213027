"""Curves as pictures inside a page."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from lit_llm.evaluation.plots import line_plot


def test_a_picture_says_what_it_shows_and_needs_nothing_from_elsewhere() -> None:
    curves = {"train/loss": ([1, 2, 3], [3.0, math.nan, 2.0]), "val/loss <b>": ([1, 3], [3.1, 2.2])}
    text = line_plot(curves, x_label="step", y_label="nats", title="Loss", log_y=True, marks=[2])
    picture = ElementTree.fromstring(text)
    words = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"step", "nats", "Loss", "train/loss", "val/loss <b>"} <= set(words)
    links = [value for element in picture.iter() for name, value in element.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links) and "<script" not in text
    assert text == line_plot(curves, x_label="step", y_label="nats", title="Loss", log_y=True, marks=[2])
