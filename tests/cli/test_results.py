"""What is printed at the end of a stage."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlparse

from lit_llm.cli.results import curves_page


def test_validation_is_pinned_to_the_top_of_tensorboard() -> None:
    address = urlparse(curves_page({"train/loss": 2.0, "val/loss/web": 3.0, "val/loss": 2.5}))
    (pins,) = parse_qs(address.query)["pinnedCards"]
    assert [(pin["plugin"], pin["tag"]) for pin in json.loads(pins)] == [
        ("scalars", "val/loss"),
        ("scalars", "val/loss/web"),
    ]
    assert address.fragment == "timeseries" and address.netloc == "localhost:6006"
    assert curves_page({"train/loss": 2.0}) == "http://localhost:6006/"
