"""Which runs of tokens have stood earlier in a corpus: the arithmetic of the step `substrings`.

A *window* is every run of `length` tokens within a document. Windows are dealt out by the smallest hash of the shorter
runs in them, as k-mers are by their minimizers (Roberts et al. 2004): windows with the same tokens have the same one,
so that each share of the hashes can be decided by itself. Consecutive windows with the same smallest hash are a
*stretch*; there is one for some thirteen tokens of prose. What is equal, a suffix array says in the end, not a hash.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lit_llm.config.extras import optional_module
from lit_llm.data.cleaning.ngrams import SPACELESS, has_spaceless, inside_word, window_hashes

STRETCH = np.dtype([("start", "<u8"), ("windows", "<u4")])
"""The first token of a stretch, counted from the beginning of its part, and how many windows it has."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
_TOKEN_OR_CHARACTER = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]")
# Smallest hashes are small; times an odd number they are spread over all of the range again.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def suffix_arrays() -> Any:
    """The library of suffix arrays, libdivsufsort (Mori).

    Raises:
        UserError: it is not installed.
    """
    return optional_module("pydivsufsort", "the step substrings", "data")


def token_pattern(text: str) -> re.Pattern[str]:
    """What finds the tokens of a text: words, punctuation marks, characters of scripts without spaces."""
    return _TOKEN_OR_CHARACTER if has_spaceless(text) else _TOKEN


def stretches(tokens: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows of some documents, by their smallest hash.

    Args:
        tokens: Hashes of the tokens of the documents, one after another, [n], uint64.
        starts: The first token of each document.
        length: Tokens of a window.

    Returns:
        A hash of each stretch, [s], uint64, and the stretches, [s], `STRETCH`.
    """
    if len(tokens) < length:
        return np.zeros(0, np.uint64), np.zeros(0, STRETCH)
    shorter = (length + 1) // 2
    least = _sliding_least(window_hashes(tokens, shorter), length - shorter + 1)
    begins = np.zeros(len(tokens) + 1, np.int32)
    np.add.at(begins, starts, 1)
    document = np.cumsum(begins[:-1])
    inside = np.flatnonzero(document[: len(least)] == document[length - 1 :])
    if not len(inside):
        return np.zeros(0, np.uint64), np.zeros(0, STRETCH)
    least = least[inside]
    new = np.flatnonzero((np.diff(inside) != 1) | (least[1:] != least[:-1])) + 1
    first = np.concatenate([[0], new])
    result = np.empty(len(first), STRETCH)
    result["start"] = inside[first]
    result["windows"] = np.diff(np.append(first, len(inside)))
    return least[first] * _SPREAD, result


def _sliding_least(values: np.ndarray, width: int) -> np.ndarray:
    """The smallest of every `width` values in a row."""
    count, block, size = len(values) - width + 1, values, 1
    while 2 * size <= width:
        block = np.minimum(block[:-size], block[size:])
        size *= 2
    return np.minimum(block[:count], block[width - size : width - size + count])


def first_occurrences(tokens: np.ndarray, allowed: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds windows that stand in a sequence of tokens more than once.

    Args:
        tokens: [n], of any integer type.
        allowed: Whether a window begins at a token, [n].
        length: Tokens of a window.

    Returns:
        Where each window begins that equals another one, [m], and where the first that is equal to it begins, [m].
    """
    if not len(tokens):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    suffixes = suffix_arrays()
    values, ids = np.unique(tokens, return_inverse=True)
    ids = ids.astype(np.min_scalar_type(len(values) - 1))
    order = suffixes.divsufsort(ids)
    common = suffixes.kasai(ids, order)  # tokens that each suffix has in common with the next one
    group = np.concatenate([[0], np.cumsum(common[:-1] < length)])
    kept = allowed[order]
    order, group = order[kept].astype(np.int64), group[kept]
    sizes = np.bincount(group, minlength=1)
    several = sizes[group] > 1
    order, group = order[several], group[several]
    if not len(order):
        return order, order
    begins = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    first = np.minimum.reduceat(order, begins)
    return order, np.repeat(first, np.diff(np.append(begins, len(order))))


def joined(intervals: np.ndarray) -> np.ndarray:
    """Intervals [m, 2] in order, those that touch or overlap as one."""
    if not len(intervals):
        return intervals
    intervals = intervals[np.lexsort((intervals[:, 1], intervals[:, 0]))]
    furthest = np.maximum.accumulate(intervals[:, 1])
    new = np.flatnonzero(np.concatenate([[True], intervals[1:, 0] > furthest[:-1]]))
    return np.stack([intervals[new, 0], furthest[np.append(new[1:], len(intervals)) - 1]], axis=1)


def without_tokens(text: str, intervals: list[tuple[int, int]]) -> tuple[str, int]:
    """A text without some of its tokens; of a word that a cut would go through, all stays.

    Where white space stands before and after a cut, the one with more line ends stays.

    Args:
        text: The text.
        intervals: First token and the one after the last of each cut, in order, apart from each other.

    Returns:
        What is left, and the number of cuts.
    """
    tokens = [match.span() for match in token_pattern(text).finditer(text)]
    pieces, at, cuts = [], 0, 0
    for first, last in intervals:
        begin, end = tokens[first][0], tokens[last - 1][1]
        while begin < end and (inside_word(text, begin) or text[begin].isspace()):
            begin += 1
        while end > begin and (inside_word(text, end) or text[end - 1].isspace()):
            end -= 1
        if begin == end:
            continue
        cuts += 1
        before, after = begin, end
        while before > at and text[before - 1].isspace():
            before -= 1
        while after < len(text) and text[after].isspace():
            after += 1
        if after == len(text) or text.count("\n", end, after) > text.count("\n", before, begin):
            pieces.append(text[at:before])
            at = len(text) if after == len(text) else end
        else:
            pieces.append(text[at:begin])
            at = after
    return "".join([*pieces, text[at:]]), cuts
