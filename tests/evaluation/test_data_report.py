"""data_card.md and data_report.html."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from lit_llm.evaluation.bars import bar_plot
from lit_llm.evaluation.data_report import write_data_report

REPORT: dict[str, Any] = {
    "command": "lit-llm clean_data --config web.yaml",
    "recipe": {"sources": [{"path": "pages"}], "steps": [{"language": {"keep": ["en"]}}]},
    "versions": {"lit_llm": "0.1.0", "xxhash": "4.1.0"},
    "sources": [
        {
            "name": "pages",
            "path": "pages/*.warc.gz",
            "description": "glob pages/*.warc.gz, 2 files",
            "units": 2,
            "documents": 1200,
            "bytes": 3_500_000,
            "skipped": {"broken record": {"number": 3, "examples": [{"where": "a.warc.gz", "detail": "no length"}]}},
        }
    ],
    "steps": [
        {
            "number": 1,
            "name": "language",
            "options": {"keep": ["en"]},
            "documents_in": 1200,
            "bytes_in": 3_500_000,
            "documents_out": 900,
            "bytes_out": 3_000_000,
            "seconds": 2.0,
            "dropped": {
                "language de": {"documents": 100, "bytes": 200_000, "examples": []},
                "language unknown": {
                    "documents": 200,
                    "bytes": 300_000,
                    "examples": [{"id": "a.warc.gz:7", "source": "pages", "text": "<script>\n# no | heading\x1b[0m"}],
                },
            },
            "counts": {"texts without letters": 5},
            "facts": {"clusters": 12, "sizes": {"2": 10, "3": 2}},
        }
    ],
    "corpus": {
        "documents": 900,
        "bytes": 3_000_000,
        "digest": "0123456789abcdef",
        "sources": {"pages": {"documents": 900, "bytes": 3_000_000}},
        "languages": {"en": 890, "unknown": 10},
        "licenses": {},
        "domains": {"b.example": 300, "a.example": 600},
        "lengths": {"bounds": [100, 1000], "documents": [0, 500, 400]},
    },
}


def test_what_the_files_say(tmp_path: Path) -> None:
    write_data_report(tmp_path, REPORT)
    card, page = ((tmp_path / name).read_text() for name in ("data_card.md", "data_report.html"))
    header = yaml.safe_load(card.split("---")[1])
    assert header["language"] == ["en"] and header["configs"][0]["data_files"] == "documents/*.parquet"
    for row in (
        "| documents | 900 of 1,200 (75.0%) |",
        "| text | 3.00 MB of 3.50 MB (85.7%) |",
        "| pages | broken record | 3 | a.warc.gz (no length) |",
        "| 1. language | 1,200 | 900 | 25.0% | 3.50 MB | 3.00 MB | 2.0 | 1.8 |",
        "| clusters | 12 |\n| sizes | 2: 10, 3: 2 |",
        "| texts without letters | 5 |",
        "| below 100 | 0 | 0.0% |\n| 100 to 1,000 | 500 | 55.6% |\n| 1,000 and more | 400 | 44.4% |",
        "| a.example | 600 | 66.7% |\n| b.example | 300 | 33.3% |",
    ):
        assert row in card
    # the commonest reason first; a stranger's text is neither markup nor an order to the terminal
    assert card.index("| language unknown | 200") < card.index("| language de | 100")
    assert "    <script>\n    # no | heading␛[0m" in card and "## Licences" not in card
    assert (
        "<script" not in page
        and "&lt;script&gt;" in page
        and "http" not in page.replace("www.w3.org/2000/svg", "")[20:].split("<body>")[0].split("http-equiv")[0]
    )
    assert page.count("<svg") == 5


def test_an_untouched_and_an_empty_corpus(tmp_path: Path) -> None:
    report = copy.deepcopy(REPORT) | {"steps": []}
    report["corpus"] |= {"documents": 0, "bytes": 0, "languages": {}, "domains": {}, "sources": {}}
    report["corpus"]["lengths"] = {"bounds": [100, 1000], "documents": [0, 0, 0]}
    write_data_report(tmp_path, report)
    assert "## Steps" not in (tmp_path / "data_card.md").read_text()


def test_bars() -> None:
    svg = bar_plot({"a & b": 10.0, "x" * 40: 5.0, "none": 0.0}, "Title")
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{space}rect")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1) and widths[2] == 0.5
    texts = [text.text for text in root.iter(f"{space}text")]
    assert texts == ["Title", "a & b", "10", "x" * 27 + "…", "5", "none", "0"]
    assert float(root.attrib["viewBox"].split()[2]) > float(next(root.iter(f"{space}rect")).attrib["x"]) + widths[0]
