"""Corpora from recipes: whole, resumable, the same to the byte whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import recipe_steps

from lit_llm.config import RecipeConfig, SourceConfig
from lit_llm.stages.clean_data import clean_data

STEPS = [{"test_long": {}}, "test_upper", "test_once", {"test_long": {"words": 6}}]


@pytest.fixture(autouse=True)
def known_steps() -> Iterator[None]:
    """A recipe may name the steps of `recipe_steps`."""
    recipe_steps.register()
    yield
    recipe_steps.unregister()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in a folder, among them short ones, repeated ones and broken ones, and a few texts in another."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "rows").mkdir()
    (folder / "texts").mkdir()
    for file in range(6):
        rows: list[Any] = [
            {
                "text": f"{'the cat sat there ' * (1 + number % 3)}{number * (file % 4)}",
                "url": f"https://www.e{file}.org/",
            }
            for number in range(30)
        ]
        rows += [{"text": "too short"}, {"text": "junk"}, {"text": " "}, {"no": 1}]
        (folder / "rows" / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "texts" / f"{file}.txt").write_text(f"A naïve cat, number {file}, went home and slept well. " * 40)
    return folder


def recipe(raw: Path, output: Path, steps: list[Any] = STEPS, **options: Any) -> RecipeConfig:
    sources = [SourceConfig(str(raw / "rows"), "rows"), SourceConfig(str(raw / "texts"), license="CC0")]
    return RecipeConfig(sources, steps, str(output), **{"num_workers": 1, "part_mib": 0.002, **options})


def documents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "documents").iterdir())}


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    steps = [{**step, "seconds": 0} for step in report["steps"]]
    return {**report, "steps": steps, "command": ""}


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that one process makes without an interruption."""
    output = tmp_path_factory.mktemp("whole") / "corpus"
    recipe_steps.register()
    clean_data(recipe(raw, output))
    return output


def test_every_document_is_accounted_for(raw: Path, whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    rows, texts = report["sources"]
    assert (rows["documents"], texts["documents"]) == (6 * 32, 6)
    assert {reason: entry["number"] for reason, entry in rows["skipped"].items()} == {
        "empty document": 6,
        "no field 'text'": 6,
    }
    assert len(rows["skipped"]["empty document"]["examples"]) == 3
    came, size = rows["documents"] + texts["documents"], rows["bytes"] + texts["bytes"]
    for step in report["steps"]:
        assert (step["documents_in"], step["bytes_in"]) == (came, size)
        assert step["documents_out"] == came - sum(each["documents"] for each in step["dropped"].values())
        came, size = step["documents_out"], step["bytes_out"]
    assert (report["corpus"]["documents"], report["corpus"]["bytes"]) == (came, size)
    long, upper, once, longer = report["steps"]
    short = 6 * 2  # "too short" and "junk"; 5 words are enough
    assert long["dropped"]["fewer than 5 words"]["documents"] == short
    assert [example["id"] for example in long["dropped"]["fewer than 5 words"]["examples"]] == [
        "0.jsonl:31",
        "0.jsonl:32",
        "1.jsonl:31",
    ]
    assert upper["counts"]["words in capitals"] == 6 * (10 * (1 + 2 + 3)) + 6 * 40
    different = {(1 + number % 3, number * (file % 4)) for file in range(6) for number in range(30)}
    assert once["documents_out"] == len(different) + 6
    assert once["facts"] == {"clusters": len(different) + 6, "texts": 6 * 30 + 6}
    assert once["counts"]["compared"] == 6 * 31
    assert longer["documents_out"] == len([each for each in different if each[0] > 1]) + 6


def test_the_corpus_is_what_the_report_says(whole: Path) -> None:
    corpus = json.loads((whole / "report.json").read_text())["corpus"]
    rows = [row for path in sorted((whole / "documents").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert len(list((whole / "documents").iterdir())) > 3
    assert len(rows) == corpus["documents"] == sum(corpus["lengths"]["documents"])
    assert sum(len(row["text"].encode()) for row in rows) == corpus["bytes"]
    assert len({(row["source"], row["id"]) for row in rows}) == len(rows)
    assert corpus["licenses"] == {"unknown": len(rows) - 6, "CC0": 6}
    assert corpus["domains"]["e1.org"] == sum(row["url"] == "https://www.e1.org/" for row in rows)
    assert rows[0]["id"] == "0.jsonl:2" and rows[-1]["id"] == "5.txt"
    assert json.loads(rows[0]["metadata"]) == {"words": 9}
    assert "CAT" in rows[0]["text"] and "cat" not in rows[0]["text"]


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 4, "keep": "stages"}, {"keep": "stages"}])
def test_the_same_bytes_however_it_is_made(raw: Path, whole: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = clean_data(recipe(raw, tmp_path / "corpus", **options)).report
    assert documents(tmp_path / "corpus") == documents(whole)
    assert without_times(report) == without_times(json.loads((whole / "report.json").read_text()))
    assert (tmp_path / "corpus" / "recipe.yaml").read_bytes() == (whole / "recipe.yaml").read_bytes()
