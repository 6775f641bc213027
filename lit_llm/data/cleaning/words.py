"""What the rules take a text apart into: words, sentences, lines, paragraphs.

Words are runs of whatever is neither a space nor punctuation, joined by an apostrophe, by a full stop (`e.g`, `3.14`)
or by a comma among digits; a run of one punctuation mark is a token of its own, as in spaCy's rules for English, except
that spaCy has `=====` as five. Scripts without spaces have no words that a rule could find: each of their characters,
with the vowel signs and tones on it, counts as one, so that numbers and repetitions of words mean something there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

_CHINESE_PLANES = "\U00020000-\U0003ffff"
# Thai, Lao, Myanmar, Khmer; kana, Bopomofo, Yi, Chinese characters (Unicode's planes 2 and 3 hold nothing else)
_WITHOUT_SPACES = (
    "\u0e01-\u0e4e\u0e80-\u0ece\u1000-\u103f\u1050-\u108f\u1780-\u17d3\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\uf900-\ufaff\uff66-\uff9d"
) + _CHINESE_PLANES


def _characters(belongs: Callable[[str], bool], end: int = 0x20000) -> str:
    """Characters, here up to the end of the symbols' plane, as the inside of a regular expression's class, as few
    ranges."""
    ranges: list[list[int]] = []
    for code in range(end):
        if belongs(chr(code)):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in ranges)


COMBINING = _characters(lambda character: unicodedata.category(character) in ("Mn", "Mc", "Me"))
"""Combining marks, as the inside of a regular expression's class."""
_KINDS_OF_MARKS = frozenset(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Cc", "Cf"))


def _is_mark(character: str) -> bool:
    """Punctuation, symbols, control and format characters. The underscore belongs to names, and joiners to their
    words."""
    if character in "_\u200c\u200d" or character.isspace():
        return False
    return unicodedata.category(character) in _KINDS_OF_MARKS


_MARKS = _characters(_is_mark)
# A class of characters is looked up in a table if all are below U+10000, and one range after another if not, which is
# several times as slow. So what is most frequent comes first, in small classes, and so that nothing is tried twice.
_FURTHER = "\U00010000-\U0010ffff"
_SPACES = "".join(filter(str.isspace, map(chr, range(0x10000))))
_BASIC_MARKS = _characters(_is_mark, 0x10000)
_BASIC_WORD = rf"[^{_SPACES}{_BASIC_MARKS}{_WITHOUT_SPACES.split(_CHINESE_PLANES)[0]}{_FURTHER}]++"
_WORD = rf"[^\s{_MARKS}{_WITHOUT_SPACES}]+"
_RUNS = r"\.+|-+|=+|\*+|#+|~+|/+|<+|>+|\|+"
_NO_RUN = r"(?![.\-=*#~/<>|])"
_TOKEN = re.compile(
    rf"[{_SPACES}]*+("
    rf"{_BASIC_WORD}(?![.'’,{_FURTHER}])"
    rf"|{_BASIC_WORD}(?:[.'’]{_BASIC_WORD}|,[0-9]++)*+(?![.'’]?[{_FURTHER}])"
    rf"|{_NO_RUN}[{_BASIC_MARKS}]|{_RUNS}"
    rf"|{_WORD}(?:[.'’]{_WORD}|,[0-9]+)*"
    rf"|[{_WITHOUT_SPACES}][{COMBINING}]*|[{_MARKS}])"
)
# The same for text in ASCII.
_ASCII_WORD = "[A-Za-z0-9_]++"
_ASCII_TOKEN = re.compile(
    rf"\s*+({_ASCII_WORD}(?![.',])|{_ASCII_WORD}(?:[.']{_ASCII_WORD}|,[0-9]++)*+|{_NO_RUN}[^\sA-Za-z0-9_]|{_RUNS})"
)
_MARK = re.compile(rf"[{_BASIC_MARKS}]|(?=[{_FURTHER}])[{_MARKS}]")

ENDS_OF_SENTENCES = (
    ".!?\u203c\u203d\u2047-\u2049\u3002\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"  # everywhere; China, Japan, Korea
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9"  # Armenian, Arabic, Urdu, Syriac, N'Ko
    "\u0964\u0965\u104a\u104b\u1362\u1367\u1368\u166e\u17d4\u17d5\u1803\u1809"  # India to Mongolia
)
"""Marks that end a sentence in scripts of our days, as the inside of a regular expression's class."""
_END_OF_SENTENCE = re.compile(rf"[{ENDS_OF_SENTENCES}…]+[\"'”’»)\]]*(?=\s)|[。！？｡]+[」』）”]*(?=\S)")
_SENTENCE_MARKS = tuple(re.findall(rf"[{ENDS_OF_SENTENCES}]", "".join(map(chr, range(0x10000)))))


@lru_cache(maxsize=1)
def tokens(text: str) -> tuple[str, ...]:
    """Words and punctuation in order. Steps that follow each other ask this of one text, which is taken apart once."""
    return tuple((_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text.rstrip()))


def is_word(token: str) -> bool:
    """Whether a token is a word, and not punctuation."""
    return not _MARK.match(token)


def count_words(text: str) -> int:
    """Number of words, punctuation left out."""
    return sum(map(is_word, tokens(text)))


def filled_lines(text: str) -> list[str]:
    """Lines with something other than spaces, as they are. Nothing but a line feed ends one."""
    return [line for line in text.split("\n") if not (line == "" or line.isspace())]


def paragraphs(text: str) -> list[str]:
    """What stands between empty lines; of an empty text, nothing."""
    return [paragraph for paragraph in re.split("\n{2,}", text.strip()) if paragraph]


def ends_a_sentence(line: str) -> bool:
    """Whether the last character is a mark that ends sentences."""
    return line.endswith(_SENTENCE_MARKS)


def count_sentences(text: str) -> int:
    """Number of sentences: an ending mark with a space after it, or one of East Asia, begins another.

    An abbreviation counts as an end, which the rules of C4, which ask for five at least, can bear.
    """
    text = text.strip()
    return 1 + sum(1 for _ in _END_OF_SENTENCE.finditer(text)) if text else 0


def repeated(items: Iterable[str]) -> tuple[int, int]:
    """How many items repeat an earlier one, and how many characters these have together."""
    seen: set[str] = set()
    number = characters = 0
    for item in items:
        if item in seen:
            number += 1
            characters += len(item)
        else:
            seen.add(item)
    return number, characters


def share(part: float, whole: float) -> float:
    """`part` of `whole`; of nothing, none."""
    return part / whole if whole else 0.0
