"""Words of a text as numbers, and hashes of every n of them in a row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import numpy as np

from lit_llm.config.extras import optional_module

SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters, for a class of a regular expression, of scripts without spaces between words: Thai, Lao, Burmese, Khmer,
Chinese and Japanese. Each counts as a word."""

_MARKS = "\u0300-\u036f"
_SPACELESS = re.compile(f"[{SPACELESS}]")
# Both give the same words where there is no character of SPACELESS; the first is three times as fast.
_WORD = re.compile(f"[\\w{_MARKS}]+")
_WORD_OR_CHARACTER = re.compile(f"[{SPACELESS}]|(?:[^\\W{SPACELESS}]|[{_MARKS}])+")
_BASE = 0x9E3779B97F4A7C15
_MOST_WORDS = 1_000_000


def word_pattern(text: str) -> re.Pattern[str]:
    """What finds the words of `text`: runs of letters and digits, or single characters of `SPACELESS`."""
    return _WORD_OR_CHARACTER if has_spaceless(text) else _WORD


def has_spaceless(text: str) -> bool:
    """Whether a text has characters of scripts that put no space between words."""
    return not text.isascii() and _SPACELESS.search(text) is not None


def normalized(word: str) -> str:
    """A word without what says nothing of its content: case, ligatures, the way its accents are encoded."""
    return unicodedata.normalize("NFKC", word.casefold())


class WordHashes(dict[str, int]):
    """XXH3-64 of words, of which each is computed once while there is room.

    Args:
        form: What of the word is hashed.
    """

    def __init__(self, form: Callable[[str], str] = str) -> None:
        super().__init__()
        self._form = form
        self._digest = optional_module("xxhash", "comparing texts", "data").xxh3_64_intdigest

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        value: int = self._digest(self._form(word).encode())
        self[word] = value
        return value

    def of(self, words: list[str]) -> np.ndarray:
        """The hash of each word: [n], uint64."""
        return np.fromiter(map(self.__getitem__, words), np.uint64, len(words))


def window_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """A hash of every `length` words in a row, as a polynomial in an odd number modulo 2^64.

    Args:
        hashes: Of the words, [n], uint64.
        length: At least 1.

    Returns:
        [n - length + 1], uint64, empty where there are fewer words than `length`.
    """
    count = max(0, len(hashes) - length + 1)
    total = np.zeros(count, np.uint64)
    # As in raising to a power by squaring: `block` has the hashes of 1, 2, 4, ... words.
    block, size, factor = hashes, 1, _BASE
    done, shift = 0, 1
    while count:
        if length & size:
            total += np.uint64(shift) * block[done : done + count]
            done, shift = done + size, shift * factor % 2**64
        if 2 * size > length:
            break
        block = block[:-size] + np.uint64(factor) * block[size:]
        size, factor = 2 * size, factor * factor % 2**64
    return total


def inside_word(text: str, place: int) -> bool:
    """Whether a cut before character `place` would go through a word, with the punctuation that stands at it."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if before.isspace() or after.isspace():
        return False
    return not (has_spaceless(before) or has_spaceless(after))
