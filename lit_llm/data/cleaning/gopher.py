"""The rules of Gopher (Rae et al. 2021, appendix A.1.1): what prose looks like, and how much of it repeats."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_llm.config.quality_rules import GopherQualityConfig, GopherRepetitionConfig
from lit_llm.data.cleaning.words import filled_lines, is_word, paragraphs, repeated, share, tokens
from lit_llm.data.sources.document import SourceDocument

ELLIPSES = ("...", "…")
BULLETS = ("•", "-")


def mean_length(words: Mapping[str, int]) -> float:
    """Mean number of characters of a word, given how often each occurs."""
    return share(sum(len(word) * times for word, times in words.items()), sum(words.values()))


def hash_ratio(text: str, number_of_words: int) -> float:
    """Number signs for each word."""
    return share(text.count("#"), number_of_words)


def ellipsis_ratio(text: str, number_of_words: int) -> float:
    """Ellipses for each word."""
    return share(sum(map(text.count, ELLIPSES)), number_of_words)


def bullet_lines(lines: Sequence[str]) -> float:
    """Share of lines that start with a bullet or a hyphen."""
    return share(sum(line.lstrip().startswith(BULLETS) for line in lines), len(lines))


def ellipsis_lines(lines: Sequence[str]) -> float:
    """Share of lines that end with an ellipsis."""
    return share(sum(line.rstrip().endswith(ELLIPSES) for line in lines), len(lines))


def alphabetic_words(counts: Mapping[str, int]) -> float:
    """Share of words with a letter, given how often each occurs."""
    return share(sum(times for word, times in counts.items() if any(map(str.isalpha, word))), sum(counts.values()))


def gopher_quality(text: str, options: GopherQualityConfig) -> str | None:
    """The first quality rule that a text fails, in words; None where it passes all."""
    counts = Counter(tokens(text))
    parts = counts if options.count_punctuation else Counter(text.split())
    words = {token: number for token, number in counts.items() if is_word(token)}
    number = sum(words.values())
    mean = mean_length(words)
    lines = text.splitlines()
    below = (
        ("fewer than {} words", number, options.min_words),
        ("mean word shorter than {} characters", mean, options.min_mean_word_length),
        ("fewer than {} of the words with a letter", alphabetic_words(parts), options.min_alphabetic_words),
        ("fewer than {} stop words", len(words.keys() & set(options.stop_words)), options.min_stop_words),
    )
    above = (
        ("more than {} words", number, options.max_words),
        ("mean word longer than {} characters", mean, options.max_mean_word_length),
        ("more than {} number signs per word", hash_ratio(text, parts.total()), options.max_hash_ratio),
        ("more than {} ellipses per word", ellipsis_ratio(text, parts.total()), options.max_ellipsis_ratio),
        ("more than {} of the lines with a bullet", bullet_lines(lines), options.max_bullet_lines),
        ("more than {} of the lines end in an ellipsis", ellipsis_lines(lines), options.max_ellipsis_lines),
    )
    for reason, value, bound in below:
        if bound is not None and value < bound:
            return reason.format(f"{bound:g}")
    for reason, value, bound in above:
        if bound is not None and value > bound:
            return reason.format(f"{bound:g}")
    return None


@dataclass(frozen=True)
class RepeatedNgrams:
    """The n-grams of a text that occur more than once.

    Attributes:
        n: Words of each.
        starts: Number of the first word of every occurrence, in order.
        codes: A number from 0 on for each occurrence, the same for equal n-grams alone.
        ends: Characters in all words before each word, and in all words.
    """

    n: int
    starts: NDArray[np.int64]
    codes: NDArray[np.int64]
    ends: NDArray[np.int64]

    def top_characters(self) -> int:
        """Characters, with a space between words, in all occurrences of the n-gram that occurs most often.

        Among several that are as frequent, the first one in the text counts.
        """
        if not len(self.starts):
            return 0
        counts = np.bincount(self.codes)
        times = int(counts.max())
        first = int(self.starts[np.argmax(counts[self.codes] == times)])
        return times * (int(self.ends[first + self.n] - self.ends[first]) + self.n - 1)

    def characters(self) -> int:
        """Characters of all words in these n-grams, each counted once."""
        following = np.append(self.starts[1:], len(self.ends) - 1)
        return int((self.ends[np.minimum(self.starts + self.n, following)] - self.ends[self.starts]).sum())

    def duplicate_characters(self) -> int:
        """Characters of words in n-grams that repeat one before; no character counts twice.

        The text is read from left to right: past a repeated n-gram, past one word otherwise.
        """
        characters = free = 0
        seen = bytearray(len(self.codes))
        sizes = self.ends[self.starts + self.n] - self.ends[self.starts]
        for start, code, size in zip(self.starts.tolist(), self.codes.tolist(), sizes.tolist(), strict=True):
            if start < free:
                continue
            if seen[code]:
                characters += size
                free = start + self.n
            else:
                seen[code] = 1
        return characters


def repeated_ngrams(words: Sequence[str]) -> Iterator[RepeatedNgrams]:
    """The repeated n-grams of words for n = 1, 2, 3, ..., up to the first n of which there are none.

    An n-gram can only be repeated where the two shorter ones in it are: what is looked at becomes less with every n.
    """
    known: dict[str, int] = {}
    singles = np.array([known.setdefault(word, len(known)) for word in words], np.int64)
    ends = np.array([0, *itertools.accumulate(map(len, words))], np.int64)
    starts, keys = np.arange(len(words)), singles
    for n in itertools.count(1):
        # Equal neighbours in order: exact, where a hash could collide.
        order = keys.argsort()
        ordered = keys[order]
        is_equal = np.zeros(len(keys) + 1, bool)
        np.equal(ordered[1:], ordered[:-1], out=is_equal[1:-1])
        before, after = is_equal[:-1], is_equal[1:]
        numbers = np.where(before | after, (after > before).cumsum() - 1, -1)
        codes = np.empty_like(keys)
        codes[order] = numbers
        kept = (codes >= 0).nonzero()[0]
        starts, codes = starts[kept], codes[kept]
        yield RepeatedNgrams(n, starts, codes, ends)
        if not len(starts):
            return
        goes_on = (starts[1:] == starts[:-1] + 1).nonzero()[0]
        starts, codes = starts[goes_on], codes[goes_on]
        # (n-gram, next word) as one number
        keys = codes * len(known) + singles[starts + n]


def gopher_repetition(text: str, options: GopherRepetitionConfig) -> str | None:
    """The first repetition rule that a text fails, in words; None where it passes all."""
    parts = (
        ("paragraphs", paragraphs(text), options.max_duplicate_paragraphs, options.max_duplicate_paragraph_characters),
        ("lines", filled_lines(text), options.max_duplicate_lines, options.max_duplicate_line_characters),
    )
    for name, items, most, most_characters in parts:
        number, characters = repeated(items)
        if most is not None and share(number, len(items)) > most:
            return f"more than {most:g} of the {name} repeat"
        if most_characters is not None and share(characters, len(text)) > most_characters:
            return f"more than {most_characters:g} of the characters in {name} that repeat"
    return _repeated_ngrams(text, options)


def _repeated_ngrams(text: str, options: GopherRepetitionConfig) -> str | None:
    top = dict(enumerate(options.max_top_ngram_characters, start=2))
    duplicate = dict(enumerate(options.max_duplicate_ngram_characters, start=5))
    longest = max([*top, *duplicate], default=0)
    if not longest:
        return None
    least = min(options.max_duplicate_ngram_characters, default=1.0)
    for ngrams in itertools.islice(repeated_ngrams(tokens(text)), longest):
        n = ngrams.n
        if n in top and share(ngrams.top_characters(), len(text)) > top[n]:
            return f"more than {top[n]:g} of the characters in one sequence of {n} words"
        if n in duplicate and share(ngrams.duplicate_characters(), len(text)) > duplicate[n]:
            return f"more than {duplicate[n]:g} of the characters in sequences of {n} words that repeat"
        # What repeats in longer sequences repeats in these.
        if n >= len(top) + 1 and share(ngrams.characters(), len(text)) <= least:
            return None
    return None


class GopherQuality:
    """Drops what fails a quality rule of Gopher."""

    def __init__(self, options: GopherQualityConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options

    def __call__(self, document: SourceDocument) -> str | None:
        """Why the document is dropped, or None."""
        return gopher_quality(document.text, self._options)


class GopherRepetition:
    """Drops what fails a repetition rule of Gopher."""

    def __init__(self, options: GopherRepetitionConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options

    def __call__(self, document: SourceDocument) -> str | None:
        """Why the document is dropped, or None."""
        return gopher_repetition(document.text, self._options)
