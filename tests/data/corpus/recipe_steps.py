"""Steps of recipes that are small enough to know by heart what they do; processes that are started know them, too."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config.cleaning import DOCUMENT_STEPS
from lit_llm.config.duplicates import CORPUS_STEPS
from lit_llm.config.recipe import STEPS
from lit_llm.data.cleaning import registry
from lit_llm.data.cleaning.step import ParallelMap
from lit_llm.data.sources.document import SourceDocument

PAUSE = "LIT_LLM_TEST_PAUSE"
"""Environment variable: seconds that the step `test_long` rests at each document."""


@dataclass
class LongOptions:
    """Keeps long documents."""

    words: int = 5


@dataclass
class UpperOptions:
    """Writes a word in capitals."""

    word: str = "cat"


@dataclass
class OnceOptions:
    """Keeps the first of equal texts."""

    ignored: str = ""


class Long:
    """Drops documents of few words."""

    def __init__(self, options: LongOptions) -> None:
        self.options, self.counts = options, Counter[str]()

    def __call__(self, document: SourceDocument) -> str | None:
        time.sleep(float(os.environ.get(PAUSE, 0)))
        words = len(document.text.split())
        document.metadata["words"] = words
        self.counts["words"] += words
        return f"fewer than {self.options.words} words" if words < self.options.words else None


class Upper:
    """Edits documents."""

    def __init__(self, options: UpperOptions) -> None:
        self.options, self.counts = options, Counter[str]()

    def __call__(self, document: SourceDocument) -> str | None:
        self.counts["words in capitals"] += document.text.count(self.options.word)
        document.text = document.text.replace(self.options.word, self.options.word.upper()).replace("junk", " ")
        return None


class Once:
    """Drops documents with the text of an earlier one, in the way of a step that works through files."""

    def __init__(self, options: OnceOptions) -> None:
        self.counts = Counter[str]()

    def index(self, documents: Iterable[SourceDocument], part: int, folder: Path) -> None:
        (folder / f"{part}.json").write_text(json.dumps([document.text for document in documents]))

    def decide(self, parts: int, folder: Path, memory_bytes: int, parallel: ParallelMap[Any]) -> dict[str, Any]:
        parallel(_touch, [folder / f"seen-{part}" for part in range(parts)])
        seen: set[str] = set()
        texts = 0
        for part in range(parts):
            keep = []
            for text in json.loads((folder / f"{part}.json").read_text()):
                keep.append(text not in seen)
                seen.add(text)
                texts += 1
            (folder / f"keep-{part}.json").write_text(json.dumps(keep))
        assert len(list(folder.glob("seen-*"))) == parts
        return {"clusters": len(seen), "texts": texts}

    def apply(
        self, documents: Iterable[SourceDocument], part: int, folder: Path
    ) -> Iterator[tuple[SourceDocument, str | None]]:
        keep = json.loads((folder / f"keep-{part}.json").read_text())
        for document, kept in zip(documents, keep, strict=True):
            self.counts["compared"] += 1
            yield document, None if kept else "same text"


def _touch(path: Path) -> None:
    path.touch()


_DOCUMENT = {"test_long": (LongOptions, "Long"), "test_upper": (UpperOptions, "Upper")}
_CORPUS = {"test_once": (OnceOptions, "Once")}


def register() -> None:
    """Adds the steps to those that a recipe may name."""
    for steps, options, classes in (
        (_DOCUMENT, DOCUMENT_STEPS, registry._DOCUMENT_STEPS),
        (_CORPUS, CORPUS_STEPS, registry._CORPUS_STEPS),
    ):
        for name, (kind, attribute) in steps.items():
            options[name] = STEPS[name] = kind
            classes[name] = f"{__name__}:{attribute}"


def unregister() -> None:
    """Takes them out again."""
    for name in (*_DOCUMENT, *_CORPUS):
        for steps in (DOCUMENT_STEPS, CORPUS_STEPS, STEPS, registry._DOCUMENT_STEPS, registry._CORPUS_STEPS):
            steps.pop(name, None)  # type: ignore[attr-defined]


if multiprocessing.parent_process() is not None:
    register()
