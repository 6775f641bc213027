"""Every recipe of a corpus is read, and run on a few documents of its kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from recipe_comments import commands_above

from lit_llm.cli import parse
from lit_llm.config import PrepareConfig, RecipeConfig, TokenizerTrainingConfig
from lit_llm.stages.clean_data import clean_data

RECIPES = sorted((ROOT / "experiments" / "configs" / "data").glob("*.yaml"))
TEXT = """
    river teacher village engine garden painter harbour forest library kitchen winter market carried watched painted
    followed repaired described crossed remembered measured answered opened kept letters bridges horses windows stories
    lanterns baskets mountains numbers songs clocks stones the the the the and and of of to with that have be
"""
WORDS = TEXT.split()


def prose(seed: int, sentences: int) -> str:
    """Sentences of English words, no two texts of which are alike."""
    chance = random.Random(seed)
    return "\n".join(f"The {' '.join(chance.choices(WORDS, k=14))}." for _ in range(sentences))


def web(folder: Path) -> None:
    for number in range(6):
        paragraphs = "".join(f"<p>{line}</p>" for line in prose(number % 5, 30).splitlines())
        (folder / f"{number}.html").write_text(
            f"<html><head><title>t</title></head><body><article>{paragraphs}</article></body></html>"
        )
    (folder / "menu.html").write_text("<html><body><p>Home</p></body></html>")


def code(folder: Path) -> None:
    for number in range(5):
        lines = [
            f"def {verb}_{number}(value):\n    return value * {i} + {number}\n" for i, verb in enumerate(WORDS[12:24])
        ]
        (folder / f"{number}.py").write_text("\n\n".join(lines[number:]))
    (folder / "copy.py").write_text((folder / "0.py").read_text())
    (folder / "broken.py").write_text("def broken(:\n    pass\n")


def books(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.txt").write_text(prose(number, 80))
    (folder / "short.txt").write_text("The end of a book is not a book.")


def wiki(folder: Path) -> None:
    pages = [f"'''Page {number}''' is one.\n" + prose(number, 20) for number in range(4)] + ["A [[stub]]."]
    text = "".join(
        f"<page><title>Page {number}</title><ns>0</ns><id>{number + 1}</id><revision><id>{number}</id>"
        f"<timestamp>2024-05-06T07:08:09Z</timestamp><model>wikitext</model><text>{page}</text></revision></page>\n"
        for number, page in enumerate(pages)
    )
    head = '<mediawiki xml:lang="en"><siteinfo><base>https://en.wikipedia.org/wiki/Main</base></siteinfo>\n'
    (folder / "pages-articles.xml").write_text(f"{head}{text}</mediawiki>\n")


def manuals(folder: Path) -> None:
    """The pages of the web, and one with code."""
    web(folder)
    code = "".join(
        f"<pre>for (i = {i}; i &lt; n; i++) {{ river[i] = {word}; }}</pre>" for i, word in enumerate(WORDS[:9])
    )
    paragraphs = "".join(f"<p>{line}</p>" for line in prose(9, 30).splitlines())
    (folder / "code.html").write_text(f"<html><body><article>{paragraphs}{code}</article></body></html>")


WRITERS = {"web": web, "manuals": manuals, "code": code, "books": books, "wiki": wiki}
KEPT = {"web": 5, "manuals": 6, "code": 5, "books": 3, "wiki": 4}


def test_each_has_documents_here() -> None:
    assert [path.stem for path in RECIPES] == sorted(WRITERS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_makes_a_corpus(recipe: Path, tmp_path: Path) -> None:
    whole = parse(RecipeConfig, ["--config", str(recipe)])
    raw = tmp_path / "raw"
    raw.mkdir()
    WRITERS[recipe.stem](raw)
    source: dict[str, Any] = {"path": str(raw), "name": recipe.stem, "format": whole.sources[0].format}
    words = ["--sources", json.dumps([source]), "--output", str(tmp_path / "corpus"), "--num_workers", "1"]
    config = parse(RecipeConfig, ["--config", str(recipe), *words])
    assert config.steps == whole.steps
    report = clean_data(config).report
    assert [step["name"] for step in report["steps"]] == [next(iter(step)) for step in whole.steps]
    reasons = [(step["name"], step["dropped"]) for step in report["steps"] if step["dropped"]]
    assert report["corpus"]["documents"] == KEPT[recipe.stem], reasons
    assert (tmp_path / "corpus" / "data_card.md").exists()
    assert (tmp_path / "corpus" / "data_report.html").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_commands_above_it_are_right(recipe: Path) -> None:
    scripts = commands_above(recipe)
    assert list(scripts) == ["clean_data", "train_tokenizer", "prepare_data"]
    corpus = parse(RecipeConfig, scripts["clean_data"])
    assert scripts["clean_data"] == ["--config", str(recipe.relative_to(ROOT))]
    tokenizer = parse(TokenizerTrainingConfig, scripts["train_tokenizer"])
    prepared = parse(PrepareConfig, scripts["prepare_data"])
    assert corpus.output == tokenizer.corpus.path == prepared.corpus.path
    assert prepared.tokenizer == tokenizer.output
