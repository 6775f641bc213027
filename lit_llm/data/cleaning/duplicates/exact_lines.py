"""Lines that many documents share."""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config.duplicates import ExactLinesConfig
from lit_llm.config.extras import optional_module
from lit_llm.data.cleaning.duplicates.clusters import EXAMPLES, DocumentNames, add_histograms, size_histogram
from lit_llm.data.cleaning.duplicates.hash_index import HashIndex, HashRange
from lit_llm.data.cleaning.step import ParallelMap
from lit_llm.data.sources.document import SourceDocument


class ExactLines:
    """Removes lines that more than so many documents have, from all of them or from all but the first so many.

    Lines end at "\\n" and are compared by the XXH3-64 of what stands between the blanks at their ends.

    Disk: 20 bytes for each different line of a part, and the names of the documents. Memory: that of `HashIndex`; 40
    bytes for each line of a part while it is indexed; when it is gone over, some 100 for each line that it loses
    somewhere.

    Args:
        options: Which lines, and what may be left of a document.
    """

    def __init__(self, options: ExactLinesConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options
        self._digest = optional_module("xxhash", "the step exact_lines", "data").xxh3_64_intdigest
        self.reason = f"fewer than {options.min_characters} characters without repeated lines"

    def index(self, documents: Iterable[SourceDocument], part: int, folder: Path) -> None:
        """Writes the hashes of the lines, each once for a document."""
        hashes, numbers = array("Q"), array("L")
        for document in DocumentNames(folder, part).watch(documents):
            found = set(self._hashes(document.text.split("\n")))
            found.discard(None)
            hashes.extend(found)
            numbers.append(len(found))
        rows = np.repeat(np.arange(len(numbers), dtype=np.uint32), np.array(numbers, np.int64))
        HashIndex(folder).write(part, np.array(hashes, np.uint64), rows)

    def decide(self, parts: int, folder: Path, memory_bytes: int, parallel: ParallelMap[Any]) -> dict[str, Any]:
        """Decides how many documents of each part keep each of its lines."""
        decision, index = folder / "decision", HashIndex(folder)
        shutil.rmtree(decision, ignore_errors=True)
        decision.mkdir()
        for part in range(parts):
            np.save(_allowed(decision, part), np.zeros(len(index.read(part)), np.uint32))
        look = partial(
            _allow_range,
            decision=decision,
            most=self._options.max_documents,
            keeps_first=self._options.keep == "first",
        )
        ranges = index.compare(parts, memory_bytes, parallel, look)
        facts = [json.loads(_range_facts(decision, number).read_text()) for number in range(ranges)]
        common = sorted((line for fact in facts for line in fact["largest"]), key=lambda line: (-line[0], *line[1:]))
        first = "the first document" if self._options.max_documents == 1 else f"the first {self._options.max_documents}"
        return {
            "lines in too many documents": sum(fact["lines"] for fact in facts),
            "documents that have such a line": add_histograms(fact["documents"] for fact in facts),
            "most common lines": [
                {"documents": documents, "first in": DocumentNames(folder, part).read([row])[0]}
                for documents, part, row in common[:EXAMPLES]
            ],
            "which keeps such a line": first if self._options.keep == "first" else "none",
        }

    def apply(
        self, documents: Iterable[SourceDocument], part: int, folder: Path
    ) -> Iterator[tuple[SourceDocument, str | None]]:
        """Yields every document without the lines that it loses."""
        records = HashIndex(folder).read(part)
        allowed = np.load(_allowed(folder / "decision", part), mmap_mode="r")
        loses = np.flatnonzero(allowed < records["amount"])
        left = dict(zip(records["hash"][loses].tolist(), allowed[loses].tolist(), strict=True))
        for document in documents:
            yield document, self._without_repeated(document, left) if left else None

    def _without_repeated(self, document: SourceDocument, left: dict[int, int]) -> str | None:
        """Takes lines out of a document, and says whether that leaves too little.

        Args:
            document: Is changed.
            left: For lines that not all documents keep, how many still may; is changed.
        """
        lines = document.text.split("\n")
        hashes = self._hashes(lines)
        removed: set[int | None] = set()
        for line in left.keys() & set(hashes):
            if left[line]:
                left[line] -= 1
            else:
                removed.add(line)
        if not removed:
            return None
        kept = [line for line, of_line in zip(lines, hashes, strict=True) if of_line not in removed]
        text = "\n".join(kept)
        self.counts["repeated lines removed"] += len(lines) - len(kept)
        self.counts["bytes of repeated lines removed"] += len(document.text.encode()) - len(text.encode())
        document.text = text
        return self.reason if len(document.text.strip()) < self._options.min_characters else None

    def _hashes(self, lines: list[str]) -> list[int | None]:
        """The hash of each line, None of one that is too short."""
        digest, least = self._digest, self._options.min_line_characters
        # The first condition is part of the second, and faster.
        return [
            digest(bare.encode()) if len(line) >= least and len(bare := line.strip()) >= least else None
            for line in lines
        ]


def _allowed(decision: Path, part: int) -> Path:
    return decision / f"allowed-{part:06d}.npy"


def _range_facts(decision: Path, number: int) -> Path:
    return decision / f"facts-{number:06d}.json"


def _allow_range(found: HashRange, decision: Path, most: int, keeps_first: bool) -> None:
    """Writes for each record of a range how many documents of its part keep the line, and what there is to say of it.

    Args:
        found: The records.
        decision: Folder with a file of numbers for each part, in the order of its index.
        most: How many documents may have the same line.
        keeps_first: Whether the first `most` keep a line that more have.
    """
    amounts, totals = found.amounts.astype(np.int64), found.totals()
    records_of_line = np.diff(found.starts)
    if keeps_first:
        before = np.cumsum(amounts) - amounts
        before -= np.repeat(before[found.starts[:-1]], records_of_line)
        allowed = np.clip(most - before, 0, amounts)
    else:
        allowed = np.where(np.repeat(totals > most, records_of_line), 0, amounts)
    for part, records in found.by_part(np.arange(len(amounts))):
        # Other ranges write to other places of the same file at the same time.
        np.load(_allowed(decision, part), mmap_mode="r+")[found.positions[records]] = allowed[records]
    repeated = totals > most
    facts = {
        "lines": int(repeated.sum()),
        "documents": size_histogram(totals[repeated]),
        "largest": found.largest(repeated, EXAMPLES),
    }
    _range_facts(decision, found.number).write_text(json.dumps(facts))
