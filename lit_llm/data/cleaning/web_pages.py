"""The rules of C4 (Raffel et al. 2020, section 2.2) and FineWeb (Penedo et al. 2024, section 3.6) for web pages."""

from __future__ import annotations

import re
from collections import Counter

from lit_llm.config.quality_rules import C4QualityConfig, FineWebQualityConfig
from lit_llm.data.cleaning.words import count_sentences, ends_a_sentence, filled_lines, repeated, share, tokens
from lit_llm.data.sources.document import SourceDocument

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def ends_like_prose(line: str) -> bool:
    """Whether a line ends in a mark that ends a sentence, or in a quotation mark, and not in an ellipsis."""
    return (ends_a_sentence(line) or line.endswith(('"', "'", "”", "」"))) and not line.endswith("...")


def without_citations(line: str) -> str:
    """The line without an encyclopedia's [1], [edit] and [citation needed], and without a space left at either end."""
    return _CITATION.sub("", line).strip() if "[" in line else line


def mentions_policies(line: str) -> bool:
    """Whether a line, in lower case, speaks of cookies, privacy or terms of use as the small print of pages does."""
    return any(phrase in line for phrase in _POLICIES)


def line_fault(line: str, options: C4QualityConfig) -> str | None:
    """Why C4 removes a line, which is stripped and had its citations removed; None where it keeps it."""
    words = line.split()
    if options.max_word_length is not None and any(len(word) > options.max_word_length for word in words):
        return "long word"
    if options.terminal_punctuation and not ends_like_prose(line):
        return "no punctuation at the end"
    if len(words) < options.min_words_per_line:
        return "few words"
    return None


def c4_lines(text: str, options: C4QualityConfig) -> tuple[str, str | None, Counter[str]]:
    """The lines of a page that C4 keeps, why it drops the page, if it does, and how many lines went for which reason.

    As in C4's own code, a page is dropped for a phrase only where that stands in a line that is not removed before.
    """
    kept: list[str] = []
    removed: Counter[str] = Counter()
    sentences = 0
    for line in map(str.strip, text.splitlines()):
        if options.remove_citations:
            line = without_citations(line)
        fault = line_fault(line, options)
        if fault is None:
            lower = line.lower()
            if options.drop_lorem_ipsum and "lorem ipsum" in lower:
                return text, "lorem ipsum", removed
            if options.remove_javascript and "javascript" in lower:
                fault = "JavaScript"
            elif options.drop_curly_brackets and "{" in line:
                return text, "curly bracket", removed
            elif options.remove_policies and mentions_policies(lower):
                fault = "policy"
        if fault is None:
            kept.append(line)
            sentences += count_sentences(line)
        elif line:
            removed[fault] += 1
    if sentences < options.min_sentences:
        return text, f"fewer than {options.min_sentences} sentences", removed
    return "\n".join(kept).strip(), None, removed


def fineweb_quality(text: str, options: FineWebQualityConfig) -> str | None:
    """The first rule of FineWeb that a text fails, in words; None where it passes all."""
    lines = filled_lines(text)
    if not lines:
        return "no text"
    punctuated = share(sum(map(ends_a_sentence, lines)), len(lines))
    if options.min_punctuated_lines is not None and punctuated < options.min_punctuated_lines:
        return f"fewer than {options.min_punctuated_lines:g} of the lines with punctuation at the end"
    short = share(sum(len(line) <= options.short_line_length for line in lines), len(lines))
    if options.max_short_lines is not None and short > options.max_short_lines:
        return f"more than {options.max_short_lines:g} of the lines are short"
    most = options.max_duplicate_line_characters
    breaks = text.count("\n")
    if most is not None and share(repeated(lines)[1], len(text) - breaks) > most:
        return f"more than {most:g} of the characters in lines that repeat"
    most = options.max_line_breaks_per_word
    if most is not None and share(breaks, len(tokens(text))) > most:
        return f"more than {most:g} line breaks per word"
    return None


class C4Quality:
    """Removes the lines that C4 removes, and drops the pages that it drops."""

    def __init__(self, options: C4QualityConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options

    def __call__(self, document: SourceDocument) -> str | None:
        """Why the document is dropped, or None."""
        text, reason, removed = c4_lines(document.text, self._options)
        if reason is None:
            document.text = text
            self.counts.update({f"lines removed: {fault}": number for fault, number in removed.items()})
        return reason


class FineWebQuality:
    """Drops what fails a rule of FineWeb."""

    def __init__(self, options: FineWebQualityConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options

    def __call__(self, document: SourceDocument) -> str | None:
        """Why the document is dropped, or None."""
        return fineweb_quality(document.text, self._options)
