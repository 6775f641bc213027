"""What is printed at the end of a stage."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from lit_llm.cli.results import curves_page, show_corpus
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.corpus.recipes.engine import CleanCorpus


def test_validation_is_pinned_to_the_top_of_tensorboard() -> None:
    address = urlparse(curves_page({"train/loss": 2.0, "val/loss/web": 3.0, "val/loss": 2.5}))
    (pins,) = parse_qs(address.query)["pinnedCards"]
    assert [(pin["plugin"], pin["tag"]) for pin in json.loads(pins)] == [
        ("scalars", "val/loss"),
        ("scalars", "val/loss/web"),
    ]
    assert address.fragment == "timeseries" and address.netloc == "localhost:6006"
    assert curves_page({"train/loss": 2.0}) == "http://localhost:6006/"


def test_what_a_source_could_not_give_is_said_with_the_most_frequent_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    skipped = {reason: {"number": number, "examples": []} for reason, number in (("broken file", 1), ("no text", 1200))}
    report = {
        "sources": [{"name": "web", "documents": 3, "bytes": 10, "skipped": skipped}],
        "steps": [],
        "corpus": {"documents": 3, "bytes": 10},
    }
    show_corpus(RecipeConfig(), CleanCorpus(Path("corpus"), report, True))
    assert "1,201 skipped, 1,200 as no text" in capsys.readouterr().out
