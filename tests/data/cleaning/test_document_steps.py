"""What holds for every step that looks at one document at a time."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from cleaning_texts import document, real_documents

from lit_llm.config import UserError, to_plain
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.cleaning.registry import build_step, is_corpus_step
from lit_llm.data.cleaning.step import DocumentStep

STEPS: dict[str, dict[str, Any]] = {
    "unicode": {"normalization": "NFKC"},
    "language": {"keep": ["en", "de"]},
    "gopher_quality": {"min_words": 5, "min_stop_words": 1},
    "gopher_repetition": {"max_top_ngram_characters": [0.5]},
    "c4_quality": {"min_sentences": 1},
    "fineweb_quality": {"max_short_lines": 0.9},
    "code_quality": {"keep_others": False},
    "url_blocklist": {"domains": ["example.com"]},
    "toxicity": {"action": "score"},
    "pii": {"style": "brackets"},
}
TEXTS = [
    *(
        "",
        " ",
        " \n\t\r\n ",
        "word",
        "委员会星期四开会讨论了新桥的问题，这座桥自五月的洪水以来一直关闭。",
        "مرحبا بالعالم",
        "สวัสดีครับ",
    ),
    *("\ufeffa\u0301\u200b", "\x00", "\ud7ff\U0010ffff", "x" * 1_000_000, "a b " * 250_000, "\n" * 1_000_000),
]


def made(name: str) -> DocumentStep:
    """The step as a recipe would have it made."""
    [(found, options)] = RecipeConfig(steps=[{name: STEPS[name]}]).step_options()
    step = build_step(found, options)
    assert isinstance(step, DocumentStep) and not is_corpus_step(name)
    return step


@pytest.mark.parametrize("name", STEPS)
def test_the_same_document_has_the_same_result_in_any_process_and_order(name: str) -> None:
    pytest.importorskip("py3langid")
    one, two = made(name), made(name)
    documents = [document(text, url="http://example.org/a", id="a.py") for text in [*TEXTS, *real_documents()[:40]]]
    first = copy.deepcopy(documents)
    reasons = [one(each) for each in first]
    assert [two(each) for each in reversed(documents)][::-1] == reasons
    assert documents == first
    assert one.counts == two.counts
    json.dumps([each.metadata for each in first])
    for reason in filter(None, reasons):
        assert len(reason) < 100 and "\n" not in reason
    assert all(number > 0 for number in one.counts.values())


@pytest.mark.parametrize("name", STEPS)
def test_its_options_say_what_they_are(name: str) -> None:
    [(_, options)] = RecipeConfig(steps=[{name: STEPS[name]}]).step_options()
    assert type(options)(**to_plain(options)) == options
    assert options.__doc__ and options.__doc__.strip().endswith(".")
    with pytest.raises(UserError, match=f"step 1 of the recipe, {name}.* no option wrong"):
        RecipeConfig(steps=[{name: {"wrong": 1}}])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"gopher_quality": {"min_words": "many"}},
            "gopher_quality: min_words is 'many'; it must be a whole number or null",
        ),
        ({"gopher_quality": {"min_words": -3}}, "gopher_quality: min_words is -3; it must be at least 0"),
        ({"unicode": {"normalization": "NFD"}}, "unicode: normalization is 'NFD'; it must be NFC or NFKC or none"),
        ({"toxicity": {"max_share": 2}}, "toxicity: max_share is 2; a share must be between 0 and 1"),
        ({"language": {"keep": "en"}}, "language: keep is 'en'; it must be a list"),
    ],
)
def test_a_recipe_says_which_option_of_which_step_is_wrong(step: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"step 1 of the recipe, {message}"):
        RecipeConfig(steps=[step])
