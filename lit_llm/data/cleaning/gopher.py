"""The rules of Gopher (Rae et al. 2021, appendix A.1.1): what prose looks like, and how much of it repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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


def ngram_codes(words: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """For n = 1, 2, 3, ... the n-grams of words as numbers, equal for equal ones and below the number of words."""
    known: dict[str, int] = {}
    singles = np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int64)
    codes = singles
    for n in range(2, len(words) + 2):
        yield codes
        # (prefix, last word) as one number, then the rank of that number among all: exact, where a hash could collide
        _, codes = np.unique(codes[: len(codes) - 1] * len(known) + singles[n - 1 :], return_inverse=True)


def top_ngram_characters(words: Sequence[str], codes: NDArray[np.int64], n: int) -> int:
    """Characters, with a space between words, in all occurrences of the n-gram that occurs most often, at least twice.

    Among several that are as frequent, the first one in the text counts.
    """
    counts = np.bincount(codes)
    times = int(counts.max(initial=0))
    if times < 2:
        return 0
    first = int(np.argmax(counts[codes] == times))
    return times * (sum(map(len, words[first : first + n])) + n - 1)


def duplicate_ngram_characters(words: Sequence[str], codes: NDArray[np.int64], n: int) -> int:
    """Characters of words in n-grams that repeat one before; no character counts twice.

    The text is read from left to right: past a repeated n-gram, past one word otherwise.
    """
    seen = bytearray(int(codes.max(initial=-1)) + 1)
    if len(seen) == len(codes):  # all of them differ
        return 0
    of_each = codes.tolist()
    characters = position = 0
    while position < len(of_each):
        code = of_each[position]
        if seen[code]:
            characters += sum(map(len, words[position : position + n]))
            position += n
        else:
            seen[code] = 1
            position += 1
    return characters


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
    words = tokens(text)
    for n, codes in enumerate(ngram_codes(words), start=1):
        if n in top and share(top_ngram_characters(words, codes, n), len(text)) > top[n]:
            return f"more than {top[n]:g} of the characters in one sequence of {n} words"
        if n in duplicate and share(duplicate_ngram_characters(words, codes, n), len(text)) > duplicate[n]:
            return f"more than {duplicate[n]:g} of the characters in sequences of {n} words that repeat"
        if n == longest or int(codes.max(initial=-1)) + 1 == len(codes):
            break  # where no n-gram repeats, no longer one does
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
