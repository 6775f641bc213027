"""The pages of the folder `pages` with their main text, and how near an extracted text comes to it."""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).with_name("pages")
_MARK = re.compile(r"<!-- /?main -->")
_MAIN = re.compile(r"<!-- main -->(.*?)<!-- /main -->", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_INLINE = re.compile(r"</?(?:a|b|em|span|code|cite)\b[^>]*>")
_WORD = re.compile(r"\w+")


def known_pages() -> dict[str, tuple[str, str]]:
    """Each page's HTML, without the marks, and its main text, by name."""
    pages = {}
    for path in sorted(FOLDER.glob("*.html")):
        marked = path.read_text(encoding="utf-8")
        main = " ".join(_MAIN.findall(marked))
        pages[path.stem] = (_MARK.sub("", marked), html.unescape(_TAG.sub(" ", _INLINE.sub("", main))))
    return pages


def word_overlap(found: str, wanted: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of the words of a text, each as often as it is there, against those of another."""
    ours, theirs = (Counter(_WORD.findall(text.lower())) for text in (found, wanted))
    common = (ours & theirs).total()
    precision, recall = common / max(1, ours.total()), common / max(1, theirs.total())
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)
