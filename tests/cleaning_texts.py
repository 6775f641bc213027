"""Real documents of many kinds that every machine has, and datatrove's filters over the same words as ours."""

from __future__ import annotations

import importlib.metadata
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED_DATA

from lit_llm.data.cleaning.words import count_sentences, tokens
from lit_llm.data.sources.document import SourceDocument


def document(text: str, **fields: Any) -> SourceDocument:
    """A document of a text."""
    return SourceDocument(**{"id": "1", "source": "test", "text": text, "digest": "0" * 32, **fields})


@cache
def real_documents() -> tuple[str, ...]:
    """Some 300 sources of the standard library, descriptions and licences of packages, articles of WikiText."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.glob("*.py")) if 200 < path.stat().st_size < 8_000][:50]
    found = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    for package in sorted(importlib.metadata.distributions(), key=lambda each: each.metadata["Name"] or ""):
        found.append((package.metadata.get_payload() or package.metadata["Description"] or "")[:6_000])
        licences = [path for path in package.files or [] if "LICENSE" in path.name.upper()][:1]
        texts = [Path(str(path.locate())) for path in licences]
        found += [path.read_text(encoding="utf-8", errors="replace")[:6_000] for path in texts if path.is_file()]
        if len(found) > 250:
            break
    wiki = SHARED_DATA / "wikitext2_valid.txt"
    if wiki.is_file():
        articles = wiki.read_text(encoding="utf-8").split("\n = ")
        found += [article.replace(" \n", "\n") for article in articles[:60]]
    return tuple(dict.fromkeys(found))


class _OurWords:
    """What datatrove expects of a tokenizer, over our words and sentences."""

    def word_tokenize(self, text: str) -> list[str]:
        return list(tokens(text))

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, 0)] * count_sentences(text)


@contextmanager
def datatrove_over_our_words() -> Iterator[Any]:
    """datatrove's filters count the words and sentences that ours count; its own tokenizer needs spaCy."""
    words = pytest.importorskip("datatrove.utils.word_tokenizers")
    text = pytest.importorskip("datatrove.utils.text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "load_word_tokenizer", lambda language: _OurWords())
        text.split_into_parts.cache_clear()
        yield
    text.split_into_parts.cache_clear()


def datatrove_reason(step: Any, text: str) -> tuple[str | None, str]:
    """Why a filter of datatrove drops a text, or None, and the text that it leaves."""
    from datatrove.data import Document

    given = Document(text=text, id="1")
    answer = step.filter(given)
    return (None if answer is True else answer[1]), given.text
