"""Listed words in documents: how many, and what share. `ToxicityConfig` says what that does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_llm.config import UserError
from lit_llm.config.text_filters import ToxicityConfig
from lit_llm.data.cleaning.word_lists import ENGLISH, lines_of
from lit_llm.data.cleaning.words import is_word, share, tokens
from lit_llm.data.sources.document import SourceDocument

Phrase = tuple[str, ...]

WHAT_IT_DOES_NOT_SHOW = (
    "A list of words misses insults in common words, irony and veiled spellings, and finds quotations, reclaimed words "
    "and the speech of those whom slurs are about. What passed is not harmless, and the share that was dropped is no "
    "measure of toxicity."
)


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: without punctuation and case."""
    return [token for token in tokens(text.casefold()) if is_word(token)]


class WordList:
    """Words and phrases to look for; of scripts without spaces, sequences of characters.

    Args:
        entries: each a word, or some with spaces between them.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        phrases = {tuple(words_of(entry)) for entry in entries} - {()}
        self._words = frozenset(phrase[0] for phrase in phrases if len(phrase) == 1)
        self._phrases: dict[str, list[Phrase]] = {}
        for phrase in sorted(phrases):
            if len(phrase) > 1:
                self._phrases.setdefault(phrase[0], []).append(phrase)

    def count(self, words: Sequence[str]) -> int:
        """How many of the words are listed, or begin a listed phrase."""
        number = sum(word in self._words for word in words)
        if self._phrases:
            number += sum(
                any(tuple(words[start : start + len(phrase)]) == phrase for phrase in self._phrases[word])
                for start, word in enumerate(words)
                if word in self._phrases and word not in self._words
            )
        return number


class Toxicity:
    """Counts listed words, and drops documents with many of them.

    Attributes:
        facts: What the report should say of these numbers.
    """

    def __init__(self, options: ToxicityConfig) -> None:
        """
        Raises:
            UserError: a file is missing, empty or no text.
        """
        self.counts: Counter[str] = Counter()
        self.facts = {"what this does not show": WHAT_IT_DOES_NOT_SHOW}
        self._options = options
        by_language: dict[str | None, list[str]] = {"en": sorted(ENGLISH)} if options.built_in else {}
        for path in options.files:
            entries = [entry for _, entry in lines_of(path)]
            if not any(words_of(entry) for entry in entries):
                raise UserError(f"the list {path} has no words")
            by_language.setdefault(_language_of(path), []).extend(entries)
        everywhere = by_language.pop(None, [])
        self._lists: dict[str | None, WordList] = {
            language: WordList([*entries, *everywhere]) for language, entries in by_language.items()
        }
        # A document whose language is not known may be in any of them
        self._lists[None] = WordList([*(entry for entries in by_language.values() for entry in entries), *everywhere])
        self._everywhere = WordList(everywhere) if everywhere else None

    def __call__(self, document: SourceDocument) -> str | None:
        """Writes number and share into the metadata; why the document is dropped, or None."""
        listed = self._lists.get(document.language, self._everywhere)
        if listed is None:
            self.counts["documents in a language without a list"] += 1
            return None
        words = words_of(document.text)
        number = listed.count(words)
        part = share(number, len(words))
        document.metadata |= {"toxic_words": number, "toxic_share": round(part, 5)}
        if number:
            self.counts["documents with a listed word"] += 1
            self.counts["listed words"] += number
        if self._options.action == "score" or number < self._options.min_words or part <= self._options.max_share:
            return None
        return f"more than {self._options.max_share:g} of the words are listed"


def _language_of(path: str) -> str | None:
    """The language that a list is named by; None where its name is no code of two or three letters."""
    stem = Path(path).name.partition(".")[0].lower()
    return stem if len(stem) in (2, 3) and stem.isascii() and stem.isalpha() else None
