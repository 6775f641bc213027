"""The rules of C4 and FineWeb one by one, and against datatrove's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from cleaning_texts import datatrove_over_our_words, datatrove_reason, document, real_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.config import UserError
from lit_llm.config.quality_rules import C4QualityConfig, FineWebQualityConfig
from lit_llm.config.recipe import RecipeConfig
from lit_llm.data.cleaning.gopher import alphabetic_words
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.web_pages import c4_lines, fineweb_quality
from lit_llm.data.cleaning.words import count_sentences, count_words, tokens

FIVE = "One is here. Two is here. Three is here. Four is here. Five is here."


@pytest.mark.parametrize(
    ("line", "options", "fault"),
    [
        ("A menu without a stop", {}, "no punctuation at the end"),
        ("A menu without a stop", {"terminal_punctuation": False}, None),
        ("It goes on and on...", {}, "no punctuation at the end"),
        ("Two words.", {}, "few words"),
        ("Two words.", {"min_words_per_line": 2}, None),
        ('She said "three more words"', {}, None),
        ("यह एक वाक्य है।", {}, None),
        ("A word of " + "x" * 1001 + ".", {}, "long word"),
        ("A word of " + "x" * 999 + ".", {}, None),
        ("Please turn on Javascript now.", {}, "JavaScript"),
        ("Please turn on Javascript now.", {"remove_javascript": False}, None),
        ("This site uses cookies today.", {}, "policy"),
        ("This site uses cookies today.", {"remove_policies": False}, None),
    ],
)
def test_lines_that_c4_removes(line: str, options: dict[str, Any], fault: str | None) -> None:
    text, reason, removed = c4_lines(f"{FIVE}\n\n{line}\n", C4QualityConfig(**options))
    assert reason is None
    assert text == (FIVE if fault else f"{FIVE}\n{line}")
    assert dict(removed) == ({fault: 1} if fault else {})


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (FIVE, {}, None),
        (FIVE.replace(" Five is here.", ""), {}, "fewer than 5 sentences"),
        (FIVE + "\nHere is lorem ipsum dolor.", {}, "lorem ipsum"),
        (FIVE + "\nHere is lorem ipsum dolor.", {"drop_lorem_ipsum": False}, None),
        (FIVE + "\nint main() { return 0; }", {}, None),
        (FIVE + "\nint main() { return 0; }.", {}, "curly bracket"),
        (FIVE + "\nint main() { return 0; }.", {"drop_curly_brackets": False}, None),
        ("", {}, "fewer than 5 sentences"),
        ("", {"min_sentences": 0}, None),
        (" \n\t\n", {}, "fewer than 5 sentences"),
    ],
)
def test_pages_that_c4_drops(text: str, options: dict[str, Any], reason: str | None) -> None:
    assert c4_lines(text, C4QualityConfig(**options))[1] == reason


def test_citations_go_with_the_space_before_them() -> None:
    page = FIVE + " [12] [edit]\n[citation needed] It is so."
    assert c4_lines(page, C4QualityConfig())[0] == FIVE + "\nIt is so."
    assert "[12]" in c4_lines(FIVE + "\nSee [12] for it.", C4QualityConfig(remove_citations=False))[0]


PROSE = "\n".join(f"A sentence of some length that is number {n} of the page." for n in range(25))
SHORT = "".join(f"\nShort line {n}." for n in range(60))


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (PROSE, {}, None),
        (PROSE.replace(".", ""), {}, "fewer than 0.12 of the lines with punctuation at the end"),
        (PROSE.replace(".", "", 22), {}, None),
        (PROSE.replace(".", "", 23), {}, "fewer than 0.12 of the lines with punctuation at the end"),
        (PROSE.replace(".", ""), {"min_punctuated_lines": None}, None),
        (PROSE + SHORT, {}, "more than 0.67 of the lines are short"),
        (PROSE + SHORT, {"short_line_length": 5}, None),
        (PROSE + SHORT, {"max_short_lines": 0.75}, None),
        (PROSE + "\nA last sentence of some length." * 2, {}, "more than 0.01 of the characters in lines that repeat"),
        (PROSE.replace("\n", "\n" * 5), {}, "more than 0.3 line breaks per word"),
        (PROSE.replace("\n", "\n" * 5), {"max_line_breaks_per_word": None}, None),
        ("", {}, "no text"),
        (" \n\t\n", {}, "no text"),
        ("这是一个很长的句子，里面有许多不同的汉字，所以它不会被认为是短的一行，也不会重复。", {}, None),
    ],
)
def test_each_rule_of_fineweb(text: str, options: dict[str, Any], reason: str | None) -> None:
    assert fineweb_quality(text, FineWebQualityConfig(**options)) == reason


def test_c4_leaves_what_datatrove_leaves() -> None:
    """But for lines that end in a typographic quotation mark or in one of another script, which datatrove removes, and
    for a space before a citation at the end of a line."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    options = C4QualityConfig(remove_citations=False)
    theirs, kept = filters.C4QualityFilter(remove_citations=False), 0
    with datatrove_over_our_words():
        for text in real_documents():
            text = text.replace("”", '"')
            reason, left = datatrove_reason(theirs, text)
            ours, our_reason, _ = c4_lines(text, options)
            assert (our_reason is None) == (reason is None), text[:200]
            if reason is None:
                assert ours == left
            else:
                assert our_reason == {"too_few_sentences": "fewer than 5 sentences"}.get(
                    reason, reason.replace("_", " ")
                )
            kept += reason is None
    assert 50 < kept < len(real_documents()) - 50


OURS_OF_FINEWEB = {
    "line_punct_ratio": "fewer than 0.12 of the lines with punctuation at the end",
    "short_line_ratio": "more than 0.67 of the lines are short",
    "char_dup_ratio": "more than 0.01 of the characters in lines that repeat",
    "list_ratio": "more than 0.3 line breaks per word",
    "empty": "no text",
    None: None,
}


def test_fineweb_decides_as_datatrove_does() -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters")
    theirs, reasons = filters.FineWebQualityFilter(), set()
    with datatrove_over_our_words():
        for text in real_documents():
            reason = datatrove_reason(theirs, text)[0]
            assert fineweb_quality(text, FineWebQualityConfig()) == OURS_OF_FINEWEB[reason], text[:200]
            reasons.add(reason)
    assert {None, "line_punct_ratio", "char_dup_ratio"} <= reasons


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["word", "a", "[1]", "x.", "y!", "z...", "{", "javascript", "lorem ipsum", "“", "।"]),
                 max_size=8).map(" ".join),
        max_size=12,
    ).map("\n".join)
)  # fmt: skip
def test_drawn_pages_as_in_datatrove(text: str) -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters")
    # a mark of another script ends a line of C4 here alone
    page = text.replace("।", "")
    with datatrove_over_our_words():
        reason, left = datatrove_reason(filters.C4QualityFilter(remove_citations=False, min_num_sentences=2), page)
        ours, our_reason, _ = c4_lines(page, C4QualityConfig(remove_citations=False, min_sentences=2))
        assert (our_reason is None) == (reason is None)
        if reason is None:
            assert ours == left
        expected = OURS_OF_FINEWEB[datatrove_reason(filters.FineWebQualityFilter(), text)[0]]
    assert fineweb_quality(text, FineWebQualityConfig()) == expected


def test_words_and_sentences() -> None:
    assert tokens("Don't: 3.14 costs $1,000... ===== foo_bar") == (
        *("Don't", ":", "3.14", "costs", "$", "1,000", "...", "=====", "foo_bar"),
    )
    assert tokens("हिन्दी में 漢字 สวัสดี") == ("हिन्दी", "में", "漢", "字", "ส", "วั", "ส", "ดี")


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_text_in_ascii_has_the_same_words_beside_a_letter_that_is_not(text: str) -> None:
    assert (*tokens(text), "é") == tokens(text + " é")


def test_the_same_text_is_taken_apart_once_by_steps_that_follow_each_other() -> None:
    text = FIVE * 3
    tokens.cache_clear()
    for name in ("gopher_quality", "gopher_repetition", "fineweb_quality"):
        [(_, options)] = RecipeConfig(steps=[{name: {}}]).step_options()
        build_step(name, options)(document(text))
    assert tokens.cache_info().misses == 1


def test_sentences() -> None:
    assert count_words("One, two -- three!") == 3
    assert count_sentences("One. Two! Is it? “Yes.” So") == 5
    assert count_sentences("これは文です。次の文です。") == 2
    assert count_sentences(" ") == 0


def test_spacy_has_about_as_many_words_and_decides_alike() -> None:
    """datatrove's own words are spaCy's; where that is installed, the two are at most a few decisions apart."""
    spacy = pytest.importorskip("spacy")
    english = spacy.blank("en")
    texts = [text for text in real_documents() if len(text) < 5_000]
    apart = 0
    for text in texts:
        theirs = [str(token) for token in english(text) if str(token).strip()]
        apart += (alphabetic_words(Counter(tokens(text))) < 0.8) != (alphabetic_words(Counter(theirs)) < 0.8)
    assert apart < 0.05 * len(texts)


def test_steps_of_a_recipe() -> None:
    step, page = build_step("c4_quality", C4QualityConfig()), document(FIVE + "\nMenu\nHome\n")
    assert step(page) is None
    assert page.text == FIVE and step.counts == {"lines removed: no punctuation at the end": 2}
    dropped = document("Menu\nHome")
    assert step(dropped) == "fewer than 5 sentences" and dropped.text == "Menu\nHome"
    assert step.counts.total() == 2
    assert build_step("fineweb_quality", FineWebQualityConfig())(document("Menu\nHome")) is not None


def test_a_megabyte_in_one_line() -> None:
    for text in ("word " * 200_000, "[" * 1_000_000, "." * 1_000_000, '"' * 1_000_000, "...)" * 250_000):
        c4_lines(text, C4QualityConfig(terminal_punctuation=False, max_word_length=None))
        fineweb_quality(text, FineWebQualityConfig())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (C4QualityConfig, {"min_sentences": -1}, "min_sentences is -1; it must be at least 0"),
        (C4QualityConfig, {"max_word_length": 0}, "max_word_length is 0; it must be at least 1"),
        (FineWebQualityConfig, {"max_short_lines": 1.2}, "max_short_lines is 1.2; a share must be between 0 and 1"),
        (FineWebQualityConfig, {"short_line_length": -2}, "short_line_length is -2; it must be at least 0"),
    ],
)
def test_options_out_of_bounds(kind: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**options)
