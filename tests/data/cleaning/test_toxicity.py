"""Listed words: counted, scored, and a bound on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cleaning_texts import document, real_documents

from lit_llm.config import UserError
from lit_llm.config.text_filters import ToxicityConfig
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.toxicity import Toxicity, WordList, words_of
from lit_llm.data.cleaning.word_lists import ENGLISH

REASON = "more than 0.005 of the words are listed"


def prose(number_of_words: int, *others: str) -> str:
    """So many words that no list has, and others after them."""
    return " ".join(["word"] * (number_of_words - len(others)) + list(others))


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (prose(100), {}, None),
        (prose(100, "shit"), {}, None),
        (prose(100, "Shit!", "FUCKING"), {}, REASON),
        (prose(400, "shit", "fucking"), {}, None),
        (prose(399, "shit", "fucking"), {}, REASON),
        (prose(100, "shit"), {"min_words": 1}, REASON),
        (prose(9999, "shit"), {"min_words": 1, "max_share": 0.0}, "more than 0 of the words are listed"),
        (prose(100, "shit", "shit"), {"action": "score"}, None),
        (prose(100, "Scunthorpe", "cockpit", "shitake", "Dickens"), {}, None),
        ("", {"min_words": 1, "max_share": 0.0}, None),
        (" \n\t", {}, None),
        ("shit" * 250_000, {}, None),
        ("shit " * 50_000, {}, REASON),
    ],
)
def test_number_and_share_are_bounded_together(text: str, options: dict[str, Any], reason: str | None) -> None:
    assert Toxicity(ToxicityConfig(**options))(document(text, language="en")) == reason


def test_the_score_is_kept() -> None:
    step, text = build_step("toxicity", ToxicityConfig(action="score")), document(prose(100, "shit", "bitch", "shit"))
    assert step(text) is None
    assert text.metadata == {"toxic_words": 3, "toxic_share": 0.03}
    assert step(document("fine")) is None
    assert step.counts == {"documents with a listed word": 1, "listed words": 3}
    assert "no measure of toxicity" in step.facts["what this does not show"]


def test_lists_by_language(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("Mist\nverdammter  Idiot # zwei Worte\n", "utf-8")
    (tmp_path / "zh.txt").write_text("混蛋\n", "utf-8")
    (tmp_path / "names.txt").write_text("Voldemort\n", "utf-8")
    files = [str(tmp_path / name) for name in ("de.txt", "zh.txt", "names.txt")]
    step = Toxicity(ToxicityConfig(files=files, action="score"))

    def number(text: str, language: str | None) -> int | None:
        found = document(text, language=language)
        step(found)
        return found.metadata.get("toxic_words")

    assert number("So ein Mist, du VERDAMMTER Idiot!", "de") == 2
    assert number("So ein Mist, du verdammter, lieber Idiot!", "de") == 1
    assert number("So ein Mist, shit", "en") == 1
    assert number("So ein Mist, shit", None) == 2
    assert number("他是混蛋。", "zh") == 1
    assert number("Voldemort, shit", "fr") == 1
    assert number("Voldemort", "de") == 1
    only_english = Toxicity(ToxicityConfig())
    assert only_english(french := document("shit", language="fr")) is None
    assert french.metadata == {} and only_english.counts == {"documents in a language without a list": 1}


def test_words_and_phrases() -> None:
    listed = WordList(["a b", "a b c", "d", "a", "...", "x y"])
    assert listed.count(words_of("a b c d")) == 2
    assert listed.count(words_of("x, y x z")) == 1
    assert listed.count([]) == 0


def test_the_built_in_list_finds_little_in_plain_documents() -> None:
    assert 60 <= len(ENGLISH) < 120
    step = Toxicity(ToxicityConfig())
    assert not [text[:80] for text in real_documents()[::3] if step(document(text, language="en"))]


def test_lists_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("...\n")
    with pytest.raises(UserError, match=r"the list .*de\.txt has no words"):
        Toxicity(ToxicityConfig(files=[str(tmp_path / "de.txt")]))
    with pytest.raises(UserError, match=r"the list .*fr\.txt cannot be read"):
        Toxicity(ToxicityConfig(files=[str(tmp_path / "fr.txt")]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_words": 0}, "min_words is 0; it must be at least 1"),
        ({"max_share": 1.5}, "max_share is 1.5; a share must be between 0 and 1"),
        ({"built_in": False}, "no words are listed: give files, or built_in: true"),
        ({"files": [""]}, "files has an empty entry"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToxicityConfig(**options)
