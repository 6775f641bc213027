"""Options of the steps that judge a document by the published rules for web text and code."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.config.bounds import check_at_least, check_order, check_shares
from lit_llm.config.errors import UserError


@dataclass
class GopherQualityConfig:
    """The quality rules of Rae et al. 2021 (arXiv 2112.11446, appendix A.1.1), which are made for English prose.

    A null turns a rule off. Every character of a script without spaces counts as a word, so that Chinese, Japanese or
    Thai text needs at least min_mean_word_length and min_stop_words turned off.
    """

    min_words: int | None = 50
    """Fewest words, punctuation left out."""
    max_words: int | None = 100_000
    """Most words, punctuation left out."""
    min_mean_word_length: float | None = 3.0
    """Least mean length of a word in characters, punctuation left out."""
    max_mean_word_length: float | None = 10.0
    """Greatest mean length of a word in characters, punctuation left out."""
    max_hash_ratio: float | None = 0.1
    """Most number signs for each word."""
    max_ellipsis_ratio: float | None = 0.1
    """Most ellipses for each word."""
    max_bullet_lines: float | None = 0.9
    """Largest share of lines that start with a bullet or a hyphen."""
    max_ellipsis_lines: float | None = 0.3
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float | None = 0.8
    """Least share of words with a letter."""
    count_punctuation: bool = False
    """For the last rule and the two ratios, count punctuation marks as words, as datatrove does, instead of whatever
    stands between spaces. Prose has a mark for every seven words or so: of 262 licences, package descriptions, sources
    and encyclopedia articles the last rule drops 199 with the marks, and 43 without."""
    min_stop_words: int | None = 2
    """Fewest different words of stop_words."""
    stop_words: list[str] = field(
        default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"],
    )
    """Words that text of the language cannot do without, in lower case as they are looked for."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "min_words", "max_words", "min_mean_word_length", "max_mean_word_length")
        check_at_least(self, 0, "max_hash_ratio", "max_ellipsis_ratio", "min_stop_words")
        check_shares(self, "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words")
        check_order(self, "min_words", "max_words")
        check_order(self, "min_mean_word_length", "max_mean_word_length")
        if self.min_stop_words is not None and self.min_stop_words > len(set(self.stop_words)):
            raise UserError(
                f"min_stop_words is {self.min_stop_words}, but stop_words has {len(set(self.stop_words))} different "
                "words; no document could pass"
            )


@dataclass
class GopherRepetitionConfig:
    """The repetition rules of Rae et al. 2021 (arXiv 2112.11446, table A1). A null or an empty list turns a rule off.

    Every character of a script without spaces counts as a word, so that there the rules see n-grams of characters,
    and drop more than they do in other scripts.
    """

    max_duplicate_paragraphs: float | None = 0.30
    """Largest share of paragraphs that repeat an earlier one."""
    max_duplicate_paragraph_characters: float | None = 0.20
    """Largest share of the text's characters in such paragraphs."""
    max_duplicate_lines: float | None = 0.30
    """Largest share of lines that repeat an earlier one."""
    max_duplicate_line_characters: float | None = 0.20
    """Largest share of the text's characters in such lines."""
    max_top_ngram_characters: list[float] = field(default_factory=lambda: [0.20, 0.18, 0.16])
    """Largest share of the text's characters in the most frequent sequence of 2, 3, ... words."""
    max_duplicate_ngram_characters: list[float] = field(default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10])
    """Largest share of the text's characters in sequences of 5, 6, ... words that repeat an earlier one."""

    def __post_init__(self) -> None:
        check_shares(self, "max_duplicate_paragraphs", "max_duplicate_paragraph_characters")
        check_shares(self, "max_duplicate_lines", "max_duplicate_line_characters")
        check_shares(self, "max_top_ngram_characters", "max_duplicate_ngram_characters")


@dataclass
class C4QualityConfig:
    """The rules of C4 (Raffel et al. 2020, arXiv 1910.10683, section 2.2), which edit by the line and drop by the page.

    Those of its rules that have a step of their own are not here: `language`, bad words (`toxicity`), and repeated
    spans (`exact_lines`). They are made for web pages in English: code does not pass for its curly brackets.
    """

    terminal_punctuation: bool = True
    """Remove lines that do not end in a full stop, an exclamation or question mark or a quotation mark, and lines that
    end in an ellipsis. The marks of other scripts count too."""
    min_words_per_line: int = 3
    """Remove lines with fewer words between spaces; 0 turns the rule off, which text without spaces needs."""
    max_word_length: int | None = 1000
    """Remove lines with a longer word; null turns the rule off."""
    remove_citations: bool = True
    """Remove the marks [1], [edit] and [citation needed] of encyclopedias."""
    drop_lorem_ipsum: bool = True
    """Drop a page with this phrase in a line that is kept so far."""
    drop_curly_brackets: bool = True
    """Drop a page with a { in a line that is kept so far."""
    remove_javascript: bool = True
    """Remove lines that name JavaScript, which mostly ask to turn it on."""
    remove_policies: bool = True
    """Remove lines on cookies, privacy and terms of use."""
    min_sentences: int = 5
    """Drop a page with fewer sentences in what is left; 0 keeps even an empty one."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "min_words_per_line", "min_sentences")
        check_at_least(self, 1, "max_word_length")


@dataclass
class FineWebQualityConfig:
    """The rules of FineWeb (Penedo et al. 2024, arXiv 2406.17557, section 3.6). A null turns a rule off."""

    min_punctuated_lines: float | None = 0.12
    """Least share of lines that end in a mark that ends a sentence, in any script."""
    max_short_lines: float | None = 0.67
    """Largest share of short lines."""
    short_line_length: int = 30
    """A line of at most this many characters is short."""
    max_duplicate_line_characters: float | None = 0.01
    """Largest share of characters in lines that repeat an earlier one."""
    max_line_breaks_per_word: float | None = 0.3
    """Most line breaks for each word or punctuation mark, which tells lists from prose."""

    def __post_init__(self) -> None:
        check_shares(self, "min_punctuated_lines", "max_short_lines", "max_duplicate_line_characters")
        check_at_least(self, 0, "short_line_length", "max_line_breaks_per_word")


@dataclass
class CodeQualityConfig:
    """The rules of StarCoder (Li et al. 2023, arXiv 2305.06161, section 3.1) and of StarCoder 2 (Lozhkov et al. 2024,
    arXiv 2402.19173, section 3) for files of source code. A null turns a rule off."""

    language_field: str = "code_language"
    """What of a document's metadata says the programming language; where it does not, the file's name does."""
    keep_others: bool = True
    """Keep documents that are not known to be code, which no rule here looks at."""
    max_line_length: int | None = 1000
    """Longest line in characters."""
    max_mean_line_length: float | None = 100.0
    """Longest mean line in characters."""
    long_lines: list[str] = field(default_factory=lambda: ["html", "markdown", "json", "text", "tex", "csv", "xml"])
    """Languages whose lines may be as long as they like."""
    min_alphanumeric: float | None = 0.25
    """Least share of letters and digits among the characters."""
    max_encoded: float | None = 0.5
    """Largest share of characters in encoded data: base64 or hexadecimal of 60 characters a line, or eight and
    more escapes with \\x, 0x or \\u in a row."""
    max_encoded_run: int | None = 1024
    """Longest piece of encoded data in characters."""
    drop_generated: bool = True
    """Drop files that say in their first lines that a program has written them."""
    drop_xml: bool = True
    """Drop files that begin as XML does, whatever their names say."""
    parse: bool = True
    """Drop Python files that the parser of this Python refuses, those for Python 2 among them."""
    max_parse_kib: int = 256
    """Python files above this size are not parsed, and kept. The parser may take a thousand bytes of memory for a byte
    of source."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_line_length", "max_mean_line_length", "max_encoded_run", "max_parse_kib")
        check_shares(self, "min_alphanumeric", "max_encoded")
