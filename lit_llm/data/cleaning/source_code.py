"""Rules for files of source code, after StarCoder: what people write, and what a compiler could read."""

from __future__ import annotations

import ast
import re
import string
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from lit_llm.config.quality_rules import CodeQualityConfig
from lit_llm.data.cleaning.words import share
from lit_llm.data.sources.code import code_language, is_generated
from lit_llm.data.sources.document import SourceDocument

_ALPHANUMERIC = (string.ascii_letters + string.digits).encode()
_ENCODED = re.compile(
    r"(?>[A-Za-z0-9+/]{60,}={0,2}\s*)+|(?>(?:0x|\\x)[0-9a-fA-F]{2}[,\s]*){8,}|(?>\\u[0-9a-fA-F]{4}){8,}"
)
# CPython joins the dotted name of an import anew with each of its parts: a megabyte of them takes hours and gigabytes
_LONG_DOTTED_NAME = re.compile(r"(?>\.[\s\\]*\w+[\s\\]*){200}")


def mean_line_length(lines: list[str]) -> float:
    """Mean number of characters of a line."""
    return share(sum(map(len, lines)), len(lines))


def alphanumeric(text: str) -> float:
    """Share of letters and digits, of any script, among the characters."""
    if text.isascii():
        return share(len(text) - len(text.encode().translate(None, _ALPHANUMERIC)), len(text))
    return share(sum(map(str.isalnum, text)), len(text))


def encoded_runs(text: str) -> Iterator[int]:
    """The length of each run of encoded data: lines of base64 or hexadecimal, byte and Unicode escapes."""
    return (len(found.group()) for found in _ENCODED.finditer(text))


def parses(text: str) -> bool:
    """Whether a text is a Python module to the parser of this Python.

    What is nested too deeply for the parser is none, nor is a name with 200 dots. Nothing of the text is run.
    """
    if _LONG_DOTTED_NAME.search(text):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's strings
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def language_of(document: SourceDocument, field: str) -> str | None:
    """The programming language of a document, by a field of its metadata or by its file's name."""
    stated = document.metadata.get(field)
    if isinstance(stated, str) and stated:
        return stated.lower()
    path = PurePosixPath(document.id)
    return code_language(path.suffix.lower(), path.name)


def code_quality(text: str, language: str, options: CodeQualityConfig) -> str | None:
    """The first rule that a file of source code fails, in words; None where it passes all."""
    if options.drop_xml and text[:100].lstrip("\ufeff \t\r\n").startswith("<?xml"):
        return "XML"
    if language not in options.long_lines:
        lines = text.split("\n")
        most, most_mean = options.max_line_length, options.max_mean_line_length
        if most is not None and max(map(len, lines)) > most:
            return f"a line longer than {most} characters"
        if most_mean is not None and mean_line_length(lines) > most_mean:
            return f"mean line longer than {most_mean:g} characters"
    if options.min_alphanumeric is not None and alphanumeric(text) < options.min_alphanumeric:
        return f"fewer than {options.min_alphanumeric:g} of the characters are letters or digits"
    runs = list(encoded_runs(text))
    if options.max_encoded_run is not None and max(runs, default=0) > options.max_encoded_run:
        return f"more than {options.max_encoded_run} characters of encoded data in a piece"
    if options.max_encoded is not None and share(sum(runs), len(text)) > options.max_encoded:
        return f"more than {options.max_encoded:g} of the characters are encoded data"
    if options.drop_generated and is_generated(text):
        return "generated"
    if options.parse and language == "python" and len(text) <= options.max_parse_kib * 1024 and not parses(text):
        return "Python that does not parse"
    return None


class CodeQuality:
    """Drops files of source code that fail a rule."""

    def __init__(self, options: CodeQualityConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options

    def __call__(self, document: SourceDocument) -> str | None:
        """Why the document is dropped, or None."""
        language = language_of(document, self._options.language_field)
        if language is None:
            return None if self._options.keep_others else "not known to be code"
        if self._options.parse and language == "python" and len(document.text) > self._options.max_parse_kib * 1024:
            self.counts["Python files too large to be parsed"] += 1
        return code_quality(document.text, language, self._options)
