"""Text whose characters were decoded right, are composed alike, and can be seen."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from lit_llm.config.extras import optional_module
from lit_llm.config.text_filters import UnicodeConfig
from lit_llm.data.cleaning.words import COMBINING, share
from lit_llm.data.sources.document import SourceDocument

Edit = Callable[[str], tuple[str, int]]
"""A text changed, and in how many places."""

_MOST_COMBINING = 30  # Unicode's Stream-Safe Text Format (UAX 15); without a bound, normalizing takes quadratic time
_MOST_ROUNDS = 8

_LINE_ENDS = re.compile("\r\n?")
# Next line (U+0085) is among these after the repair alone, which reads it as a byte of a letter
_OTHER_LINE_ENDS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff]")
# The tags of a flag, as England's, belong to the black flag before them
_TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007f]+)|[\U000e0000-\U000e007f]")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ZERO_WIDTH = re.compile(
    "[\u00ad\u180e\u2060-\u2064\u206a-\u206f]"
    "|(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b"
    "|(?<![\u0590-\u1fff\u2190-\u2fff\u3040-\ud7ff\uf900-\ufe0f\U00010000-\U0003ffff])[\u200c\u200d]"
)
_MANY_COMBINING = re.compile(f"([{COMBINING}]{{{_MOST_COMBINING}}})[{COMBINING}]+")
_TERMINAL_ESCAPES = re.compile("\x1b\\[[0-9;]{0,40}[a-zA-Z]")
_C1 = re.compile("[\x80-\x9f]")
# What an edit but the repair and the normalization takes away or replaces, of ASCII and beyond it
_ODD_ASCII = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_ODD = re.compile(
    "[\x80-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)


def line_feeds(text: str) -> tuple[str, int]:
    """Line feeds for the line ends of Windows and old Macs."""
    return _LINE_ENDS.subn("\n", text) if "\r" in text else (text, 0)


def other_line_feeds(text: str) -> tuple[str, int]:
    """Line feeds for form feeds and Unicode's separators."""
    return _OTHER_LINE_ENDS.subn("\n", text)


def without_terminal_escapes(text: str) -> tuple[str, int]:
    """The text without the colours and moves that a program sends to a terminal."""
    return _TERMINAL_ESCAPES.subn("", text) if "\x1b" in text else (text, 0)


def without_controls(text: str) -> tuple[str, int]:
    """The text without control characters, marks of byte order, noncharacters and tags."""
    kept = _CONTROLS.sub("", text)
    if not kept.isascii():
        kept = _TAGS.sub(r"\1", kept)
    return kept, len(text) - len(kept)


def without_bidi_controls(text: str) -> tuple[str, int]:
    """The text without marks of the direction of writing."""
    return (text, 0) if text.isascii() else _BIDI.subn("", text)


def without_zero_width(text: str) -> tuple[str, int]:
    """The text without characters that have no width, but where a script needs them."""
    return (text, 0) if text.isascii() else _ZERO_WIDTH.subn("", text)


def fewer_combining_marks(text: str) -> tuple[str, int]:
    """The text with at most 30 combining marks in a row."""
    return (text, 0) if text.isascii() else _MANY_COMBINING.subn(r"\1", text)


def without_trailing_spaces(text: str) -> tuple[str, int]:
    """The text without spaces at the ends of lines, and without empty lines at its ends."""
    lines = text.split("\n")
    stripped = [line.rstrip() for line in lines]
    changed = sum(map(str.__ne__, lines, stripped))
    kept = "\n".join(stripped)
    return kept.strip("\n"), changed


class Unicode:
    """Repairs and normalizes characters. What it does to its own result is nothing."""

    def __init__(self, options: UnicodeConfig) -> None:
        """
        Raises:
            UserError: mojibake is to be repaired, and ftfy is not installed.
        """
        self.counts: Counter[str] = Counter()
        self._options = options
        self._is_bad, repaired = _repair() if options.mojibake else (_never, line_feeds)
        edits: list[tuple[str, bool, Edit]] = [
            ("line ends replaced", options.line_ends, line_feeds),
            ("terminal escapes removed", options.mojibake, without_terminal_escapes),
            ("lines of mojibake repaired", options.mojibake, repaired),
            ("line ends replaced", options.line_ends, other_line_feeds),
            ("control characters removed", options.control_characters, without_controls),
            ("bidi controls removed", options.bidi_controls, without_bidi_controls),
            ("zero-width characters removed", options.zero_width, without_zero_width),
            ("runs of combining marks cut", options.normalization != "none", fewer_combining_marks),
            (f"texts brought to {options.normalization}", options.normalization != "none", self._normalized),
        ]
        self._edits = [(name, edit) for name, wanted, edit in edits if wanted]

    def __call__(self, document: SourceDocument) -> str | None:
        """Changes the text; why the document is dropped, or None."""
        text = document.text
        for _ in range(_MOST_ROUNDS):  # what one edit takes away can make work for one before it
            before = text
            for name, edit in self._edits if self._needs_edits(text) else ():
                text, number = edit(text)
                self.counts[name] += number
            text = self._fewer_blanks(text)
            if text == before:
                break
        document.text = text
        self.counts = +self.counts
        most = self._options.max_replacement_characters
        if most is not None and share(text.count("\ufffd"), len(text)) > most:
            return f"more than {most:g} of the characters could not be decoded"
        return None if text.strip() else "no text"

    def _needs_edits(self, text: str) -> bool:
        """Whether any edit could change the text; most texts are told by one look that none can."""
        if _ODD_ASCII.search(text) is not None:
            return True
        if text.isascii():
            return False
        rest = "\n".join([line for line in text.split("\n") if not line.isascii()])
        return (
            _ODD.search(rest) is not None
            or self._is_bad(rest)
            or fewer_combining_marks(rest)[1] > 0
            or self._normalized(rest)[0] != rest
        )

    def _normalized(self, text: str) -> tuple[str, int]:
        form = self._options.normalization
        if form == "none" or text.isascii() or unicodedata.is_normalized(form, text):
            return text, 0
        return unicodedata.normalize(form, text), 1

    def _fewer_blanks(self, text: str) -> str:
        if self._options.trailing_spaces:
            text, number = without_trailing_spaces(text)
            self.counts["lines with spaces at the end"] += number
        most = self._options.max_blank_lines
        if most is not None:
            text, number = re.subn(f"\n{{{most + 2},}}", "\n" * (most + 1), text)
            self.counts["runs of blank lines cut"] += number
        return text


def _never(text: str) -> bool:
    return False


def _repair() -> tuple[Callable[[str], bool], Edit]:
    """Whether a text looks wrongly decoded to ftfy, and its repair, line by line.

    Raises:
        UserError: ftfy is not installed.
    """
    ftfy = optional_module("ftfy", "the step unicode with mojibake: true", "data")
    is_bad = optional_module("ftfy.badness", "the step unicode with mojibake: true", "data").is_bad
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )

    def repaired(text: str) -> tuple[str, int]:
        if text.isascii() or not (_C1.search(text) or is_bad(text)):
            return text, 0
        lines = text.split("\n")
        fixed = [
            ftfy.fix_text(line, config) if not line.isascii() and (_C1.search(line) or is_bad(line)) else line
            for line in lines
        ]
        return "\n".join(fixed), sum(map(str.__ne__, lines, fixed))

    return is_bad, repaired
