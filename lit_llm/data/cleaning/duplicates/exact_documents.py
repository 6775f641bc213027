"""Documents that are the same as an earlier one."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config.duplicates import ExactDocumentsConfig
from lit_llm.config.extras import optional_module
from lit_llm.data.cleaning.duplicates.clusters import EXAMPLES, DocumentNames, add_histograms, size_histogram
from lit_llm.data.cleaning.duplicates.hash_index import HashIndex, HashRange
from lit_llm.data.cleaning.step import ParallelMap
from lit_llm.data.sources.document import SourceDocument

REASON = "duplicate of an earlier document"


class ExactDocuments:
    """Removes every document whose text has the XXH3-128 of an earlier one; the first stays.

    Disk: 24 bytes for each different text of a part, two bytes for each document, and the names of the documents.
    Memory: that of `HashIndex`, and 32 bytes for each document of a part.

    Among n different texts two have the same hash by chance with a probability of n^2 / 2^129: 1e-21 at a billion.

    Args:
        options: How texts are compared.
    """

    def __init__(self, options: ExactDocumentsConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._ignores_form = options.normalize != "none"
        self._digest = optional_module("xxhash", "the step exact_documents", "data").xxh3_128_digest

    def index(self, documents: Iterable[SourceDocument], part: int, folder: Path) -> None:
        """Writes the hash of every text."""
        digests = b"".join(map(self._hash, DocumentNames(folder, part).watch(documents)))
        hashes = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
        later, _ = _index(folder).write(part, hashes, np.arange(len(hashes), dtype=np.uint32))
        is_duplicate = np.zeros(len(hashes), np.uint8)
        is_duplicate[later] = 1
        np.save(folder / f"within-{part:06d}.npy", is_duplicate)

    def decide(self, parts: int, folder: Path, memory_bytes: int, parallel: ParallelMap[Any]) -> dict[str, Any]:
        """Marks every document that is not the first with its hash."""
        decision = folder / "decision"
        shutil.rmtree(decision, ignore_errors=True)
        decision.mkdir()
        for part in range(parts):
            shutil.copyfile(folder / f"within-{part:06d}.npy", _marks(decision, part))
        ranges = _index(folder).compare(parts, memory_bytes, parallel, partial(_mark_range, decision=decision))
        return _facts(folder, [json.loads(_range_facts(decision, number).read_text()) for number in range(ranges)])

    def apply(
        self, documents: Iterable[SourceDocument], part: int, folder: Path
    ) -> Iterator[tuple[SourceDocument, str | None]]:
        """Yields every document, and whether it is a duplicate."""
        for document, is_duplicate in zip(documents, np.load(_marks(folder / "decision", part)), strict=True):
            yield document, REASON if is_duplicate else None

    def _hash(self, document: SourceDocument) -> bytes:
        text = document.text
        if self._ignores_form:
            text = " ".join(text.lower().split())
        digest: bytes = self._digest(text.encode())
        return digest


def _index(folder: Path) -> HashIndex:
    return HashIndex(folder, is_wide=True)


def _marks(decision: Path, part: int) -> Path:
    return decision / f"duplicates-{part:06d}.npy"


def _range_facts(decision: Path, number: int) -> Path:
    return decision / f"facts-{number:06d}.json"


def _mark_range(found: HashRange, decision: Path) -> None:
    """Marks the documents of a range in the files of their parts, and writes what there is to say of it."""
    for part, records in found.by_part(found.later()):
        # Other ranges write to other bytes of the same file at the same time.
        np.load(_marks(decision, part), mmap_mode="r+")[found.rows[records]] = 1
    sizes = found.totals()
    is_cluster = sizes > 1
    facts = {
        "clusters": int(is_cluster.sum()),
        "documents": int(sizes[is_cluster].sum()),
        "sizes": size_histogram(sizes[is_cluster]),
        "largest": found.largest(is_cluster, EXAMPLES),
    }
    _range_facts(decision, found.number).write_text(json.dumps(facts))


def _facts(folder: Path, ranges: list[dict[str, Any]]) -> dict[str, Any]:
    largest = sorted((item for facts in ranges for item in facts["largest"]), key=lambda item: (-item[0], *item[1:]))
    clusters = sum(facts["clusters"] for facts in ranges)
    return {
        "clusters": clusters,
        "documents removed": sum(facts["documents"] for facts in ranges) - clusters,
        "cluster sizes": add_histograms(facts["sizes"] for facts in ranges),
        "which stays": "the first of a cluster",
        "largest clusters": [
            {"documents": size, "kept": DocumentNames(folder, part).read([row])}
            for size, part, row in largest[:EXAMPLES]
        ],
    }
