"""Characters: repaired where they were decoded wrongly, left alone where they are right."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

import pytest
from cleaning_texts import document, real_documents
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_llm.config import UserError
from lit_llm.config.text_filters import UnicodeConfig
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.unicode import Unicode

pytest.importorskip("ftfy")


def cleaned(text: str, **options: Any) -> str:
    """What the step makes of a text."""
    given_document = document(text)
    Unicode(UnicodeConfig(**options))(given_document)
    return given_document.text


FAMILY, PERSIAN = "👨\u200d👩\u200d👧", "می\u200cخواهم"
ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schÃ¶n, â€œquotedâ€\x9d, l’Ã©cole", "schön, “quoted”, l’école"),
        ("cafe\u0301", "café"),
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("on and on\x85", "on and on…"),
        ("\ufeffa\x00b\x07c\ufffe", "abc"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("l\u200bong soft\u00adhyphen\u2060 e\u200dnd", "long softhyphen end"),
        ("if a\u202e == b\u2066:", "if a == b:"),
        ("hidden\U000e0041\U000e0042 text", "hidden text"),
        ("a  \n\tb\t\n   \nc ", "a\n\tb\n\nc"),
        ("\n\n  indented\n\n\n\n\n\nlast\n", "  indented\n\n\nlast"),
        ("o" + "\u0302" * 100 + "k", "ô" + "\u0302" * 29 + "k"),
    ],
)
def test_what_is_repaired(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("‘curly’ “quotes”", "ﬁ ligature, ＦＵＬＬ width", "x² + H₂O ½", "&lt;b&gt; &amp;c", "a\tb"),
        *(
            FAMILY,
            PERSIAN,
            ENGLAND,
            "ភាសា\u200bខ្មែរ",
            "क्\u200dष",
            "漢字、かな",
            "I ♥\ufe0f",
            "naïve Ångström",
            "Größe Ã",
        ),
    ],
)
def test_what_is_right_stays(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("mojibake", False, "schÃ¶n"),
        ("normalization", "none", "cafe\u0301"),
        ("control_characters", False, "a\x07b"),
        ("zero_width", False, "a\u200bb"),
        ("bidi_controls", False, "a\u202eb"),
        ("line_ends", False, "a\rb\x0cc"),
        ("trailing_spaces", False, "a \n"),
        ("max_blank_lines", None, "a\n\n\n\n\nb"),
    ],
)
def test_each_option_turns_its_edit_off(option: str, value: Any, text: str) -> None:
    assert cleaned(text, **{option: value}) == text
    assert cleaned(text) != text


def test_bounds_of_blank_lines_and_form() -> None:
    assert cleaned("a\n\n\n\nb", max_blank_lines=0) == "a\nb"
    assert cleaned("a\n\n\n\nb", max_blank_lines=1) == "a\n\nb"
    assert cleaned("ﬁ x²", normalization="NFKC") == "fi x2"


# letters, accents and bytes of wrongly decoded text, and everything that an edit looks for
_PARTS = [
    *(*"aé \t\n\r\x0c\x85©â€œ\x9dÂ\xa0Å", "Ã", "schÃ¶n", "â€™", "\x1b[0m", "\x1b[31m", "\x00", "\u00ad", "\ufffd"),
    *("\u0301", "\u0315", "\u0302" * 20, "\u200b", "\u200d", "\u202e", "\u2028", "\ufeff", "م", "ក", "漢", "ﬁ"),
    *("😀", "🏴", "\U000e0067"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(_PARTS), max_size=30).map("".join) | st.text(max_size=60), st.booleans())
@example("Ã\u200b©", True)
@example("\x1b[\x1b[31m31m", True)
@example("€é\xa0", True)
def test_a_second_time_changes_nothing(text: str, everything: bool) -> None:
    options = {} if everything else {"normalization": "NFKC", "control_characters": False, "max_blank_lines": 0}
    once = cleaned(text, **options)
    again, step = document(once), Unicode(UnicodeConfig(**options))
    step(again)
    assert again.text == once
    assert not step.counts
    assert unicodedata.is_normalized("NFC", once)


def test_real_documents_change_in_their_spaces_alone() -> None:
    for text in real_documents():
        unbroken = text.replace("\x0c", "\n").replace("\ufeff", "")
        assert (
            cleaned(text).split() == unicodedata.normalize("NFC", unbroken).split() or "\u200b" in text or "Ã" in text
        )


def test_it_counts_what_it_changed() -> None:
    step = build_step("unicode", UnicodeConfig())
    step(document("a\r\nb\r\n\x00\x00 e\u0301 \u200bx"))
    step(document("fine"))
    assert step.counts == {
        "line ends replaced": 2,
        "control characters removed": 2,
        "zero-width characters removed": 1,
        "texts brought to NFC": 1,
    }


def test_texts_that_are_dropped() -> None:
    step = Unicode(UnicodeConfig())
    assert step(document("")) == step(document(" \n\t\r\n")) == step(document("\x00\u200b")) == "no text"
    assert step(document("ab\ufffd" * 10)) == "more than 0.01 of the characters could not be decoded"
    assert step(document("a" * 99 + "\ufffd")) is None
    assert Unicode(UnicodeConfig(max_replacement_characters=None))(document("\ufffd")) is None


@pytest.mark.parametrize(
    "text",
    [
        *("a" + "\u0315\u0300" * 100_000, " " * 200_000 + "x", "Ã" * 200_000, "\x1b[" * 100_000, "\x1b[1" * 70_000),
        *(
            "\u200d" * 200_000,
            "\U0001f3f4" + "\U000e0020" * 200_000,
            " \n" * 100_000,
            "â\x80" * 100_000,
            "x " * 500_000,
        ),
    ],
    ids=range(10),
)
def test_long_hostile_texts_take_no_quadratic_time(text: str) -> None:
    """Each would take minutes where an expression, or the sorting of accents, took quadratic time."""
    cleaned(text)


def test_without_ftfy_all_but_its_repair_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"mojibake: true needs ftfy .*pip install 'lit-llm\[data\]'"):
        Unicode(UnicodeConfig())
    assert cleaned("a\r\nb", mojibake=False) == "a\nb"


def test_options_out_of_bounds() -> None:
    with pytest.raises(UserError, match="max_blank_lines is -1; it must be at least 0"):
        UnicodeConfig(max_blank_lines=-1)
    with pytest.raises(UserError, match="max_replacement_characters is 2; a share must be between 0 and 1"):
        UnicodeConfig(max_replacement_characters=2)
