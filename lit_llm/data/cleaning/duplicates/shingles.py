"""Hashes of every n words in a row of a text, by operations on whole arrays.

A word is a run of letters, digits and their marks, without case; a character of a script that puts no space between
words (Chinese, Japanese, Thai, ...) is a word. Everything else separates words.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain

import numpy as np

PIECE_CHARACTERS = 2**18
"""Characters that are looked at together, so that the arrays stay in a processor's cache. A longer text is cut where a
word ends, or, where none does, through the word."""

_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Chinese
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
_IS_WORD = np.uint32(1 << 31)
_BASE = 0x9E3779B97F4A7C15
_MIX = 0xFF51AFD7ED558CCD


def random_words(seed: int, count: int) -> np.ndarray:
    """Pseudorandom odd numbers, the same on every machine (SplitMix64, Steele et al. 2014): [count], uint64."""
    state = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed % 2**32 << 32)) * np.uint64(_BASE)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) | np.uint64(1)


def word_hashes(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The words of a text.

    Returns:
        The hash of each, [words], uint64, and the character that it begins at, [words], int64.
    """
    hashes, places = [], []
    begin = 0
    while begin < len(text):
        folded = _folded(text[begin : begin + PIECE_CHARACTERS])
        if begin + PIECE_CHARACTERS < len(text):
            ends = np.flatnonzero(folded == 0)
            folded = folded[: ends[-1] + 1] if len(ends) else folded
        starts = _word_starts(folded)
        hashes.append(_hashes(folded, starts))
        places.append(starts + begin)
        begin += len(folded)
    if not hashes:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.concatenate(hashes), np.concatenate(places)


def shingles(texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of every `length` words in a row of each text.

    A text of fewer words has one hash, of all of them; one without a word has one of its characters.

    Returns:
        The hashes, text after text, uint32, and where those of each text begin, [texts + 1], int64.
    """
    words, places = word_hashes("\n".join(texts))
    begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
    firsts = np.searchsorted(places, begins)
    counts = np.diff(firsts)
    firsts, ends = firsts[:-1], firsts[1:]
    factors = random_words(length, length + 1)

    hashes = np.zeros(len(words), np.uint64)
    if (whole := len(words) - length + 1) > 0:
        product = np.empty(whole, np.uint64)
        for place in range(length):
            hashes[:whole] += np.multiply(words[place : place + whole], factors[place], out=product)
    is_used = np.ones(len(words), bool)
    for back in range(1, length):
        is_used[(ends - back)[counts >= back]] = False

    is_short = (counts > 0) & (counts < length)
    short, shorts = firsts[is_short], counts[is_short]
    hashes[short] = shorts.astype(np.uint64) * factors[length]
    for place in range(length - 1):
        has = shorts > place
        hashes[short[has]] += words[short[has] + place] * factors[place]
    is_used[short] = True

    starts = np.concatenate([[0], np.cumsum(np.maximum(counts - length + 1, 1))])
    hashes = hashes[is_used]
    if without := np.flatnonzero(counts == 0).tolist():
        places = starts[without] - np.arange(len(without))
        hashes = np.insert(hashes, places, [_characters_hash(texts[number]) for number in without])
    # So far all is linear modulo 2^64, where low bits know nothing of high ones.
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(_MIX)
    hashes >>= np.uint64(32)
    return hashes.astype(np.uint32), starts


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yields the texts in order, as many at a time as make a piece, or one that is longer."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) >= PIECE_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield batch


def _characters_hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little"))


def _folded(text: str) -> np.ndarray:
    """Each character without case; 0 where it belongs to no word, `_IS_WORD` is set where it is a word by itself."""
    return _folding().take(np.frombuffer(text.encode("utf-32-le"), np.int32), mode="wrap")


def _word_starts(folded: np.ndarray) -> np.ndarray:
    belongs = folded != 0
    begins = belongs.copy()
    begins[1:] &= ~belongs[:-1]
    if len(folded) and folded.max() >= _IS_WORD:
        alone = folded >= _IS_WORD
        begins |= alone
        begins[1:] |= alone[:-1] & belongs[1:]
    return np.flatnonzero(begins)


def _hashes(folded: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A polynomial of the characters of each word in an odd number modulo 2^64, [words], uint64."""
    powers, inverses = _powers()
    terms = folded * powers[: len(folded)]
    sums = np.cumsum(terms)
    # What separates words adds 0: a word's sum is all from its start to the next one's.
    before = sums[starts]
    before -= terms[starts]
    of_word = np.empty(len(starts), np.uint64)
    np.subtract(before[1:], before[:-1], out=of_word[:-1])
    of_word[-1:] = sums[-1] - before[-1:]
    of_word *= inverses[starts]
    return of_word


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """The powers of `_BASE` modulo 2^64, and those of its inverse, [PIECE_CHARACTERS], uint64."""
    # The C library gives large arrays back to the system as soon as they are freed, and getting their pages anew takes
    # longer than all that is done with them, until it has seen one of this size freed (mallopt(3), M_MMAP_THRESHOLD).
    np.empty(2**25 - 2**16, np.uint8)
    return tuple(  # type: ignore[return-value]  # two of them
        np.cumprod(np.full(PIECE_CHARACTERS, base, np.uint64)) for base in (_BASE, pow(_BASE, -1, 2**64))
    )


@cache
def _folding() -> np.ndarray:
    """What becomes of every character, [0x110000], uint32."""
    table = np.zeros(0x110000, np.uint32)
    # Beyond the third plane, only selectors of variants belong to words.
    for code in chain(range(0x33480), range(0xE0100, 0xE01F0)):
        if unicodedata.category(character := chr(code))[0] in "LMN":
            table[code] = ord(character.lower()[0])
    for first, last in _SPACELESS:
        block = table[first : last + 1]
        block[block != 0] |= _IS_WORD
    return table
