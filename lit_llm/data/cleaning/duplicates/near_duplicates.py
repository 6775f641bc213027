"""Documents most of whose words stand in the same order in another document."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config.duplicates import NearDuplicatesConfig
from lit_llm.data.cleaning.duplicates.clusters import DocumentNames
from lit_llm.data.cleaning.duplicates.components import Components
from lit_llm.data.cleaning.duplicates.hash_index import HashIndex, HashRange
from lit_llm.data.cleaning.duplicates.minhash import MinHash
from lit_llm.data.cleaning.duplicates.near_clusters import NearClusters
from lit_llm.data.cleaning.duplicates.shingles import batches, shingles
from lit_llm.data.cleaning.step import ParallelMap
from lit_llm.data.sources.document import SourceDocument

REASON = "near-duplicate"
_EDGE_BYTES = 128
_COMPARED_AT_ONCE = 4096


class NearDuplicates:
    """Removes all but one of every group of near-duplicates, by MinHash-LSH and connected components.

    Documents are sets of hashes of `ngram` words in a row (see `shingles`); one of fewer words is one hash of all of
    them, so that it is a near-duplicate of what has exactly the same words. Documents that agree in a band of their
    signatures are joined, and everything that is connected is a group.

    Disk per document: 16 bytes for each band, 37 for the groups, up to 16 for each band in which it agrees with an
    earlier document, and its name; with `verify`, 4 more for each hash of the signature. Memory: that of `HashIndex`,
    and 28 bytes per document in files mapped into memory, which the system writes out where memory is short.

    Args:
        options: The signatures, and what stays.
    """

    def __init__(self, options: NearDuplicatesConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options
        self._minhash = MinHash(options.bands, options.rows, options.seed)

    def index(self, documents: Iterable[SourceDocument], part: int, folder: Path) -> None:
        """Writes the bands of every document."""
        lengths: list[int] = []
        bands, signatures = [], []
        for batch in batches(document.text for document in DocumentNames(folder, part).watch(documents)):
            lengths += map(len, batch)
            of_batch = self._minhash.signatures(*shingles(batch, self._options.ngram))
            bands.append(self._minhash.band_hashes(of_batch))
            if self._options.verify is not None:
                signatures.append(of_batch)
        np.save(_lengths(folder, part), np.array(lengths, np.int64))
        hashes = np.concatenate(bands).ravel() if bands else np.empty(0, np.uint64)
        rows = np.repeat(np.arange(len(lengths), dtype=np.uint32), self._options.bands)
        later, first = HashIndex(folder).write(part, hashes, rows)
        np.save(folder / f"within-{part:06d}.npy", _different_pairs(first, later))
        if self._options.verify is not None:
            np.save(_signatures(folder, part), np.concatenate(signatures) if signatures else self._no_signatures())

    def decide(self, parts: int, folder: Path, memory_bytes: int, parallel: ParallelMap[Any]) -> dict[str, Any]:
        """Joins what agrees in a band, and chooses what stays of each group."""
        decision = folder / "decision"
        shutil.rmtree(decision, ignore_errors=True)
        decision.mkdir()
        lengths = [len(np.load(_lengths(folder, part), mmap_mode="r")) for part in range(parts)]
        starts = np.cumsum([0, *lengths])
        components = Components(decision / "components.npy", int(starts[-1]))
        ranges = HashIndex(folder).compare(
            parts, memory_bytes, parallel, partial(_join_range, decision=decision, starts=starts)
        )
        for part in range(parts):
            within = np.load(folder / f"within-{part:06d}.npy").astype(np.int64) + starts[part]
            components.join(within[:, 0], within[:, 1])
        at_once = max(1, memory_bytes // _EDGE_BYTES)
        for number in range(ranges):
            edges = np.load(_edges(decision, number), mmap_mode="r")
            for begin in range(0, len(edges), at_once):
                chunk = np.asarray(edges[begin : begin + at_once])
                components.join(chunk[:, 0], chunk[:, 1])
            _edges(decision, number).unlink()
        return self._choose(NearClusters(folder, decision, starts, components), starts, folder)

    def apply(
        self, documents: Iterable[SourceDocument], part: int, folder: Path
    ) -> Iterator[tuple[SourceDocument, str | None]]:
        """Yields every document, and whether it is a near-duplicate."""
        marks = np.load(folder / "decision" / f"duplicates-{part:06d}.npy")
        for document, is_removed in zip(documents, marks, strict=True):
            yield document, REASON if is_removed else None

    def _choose(self, clusters: NearClusters, starts: np.ndarray, folder: Path) -> dict[str, Any]:
        options = self._options

        def lengths(part: int) -> np.ndarray:
            found: np.ndarray = np.load(_lengths(folder, part))
            return found if options.keep == "longest" else np.zeros_like(found)

        similarity = partial(_similarity, folder, starts) if options.verify is not None else None
        clusters.choose(lengths, similarity, options.verify or 0.0)
        removed = sum(int(clusters.removed(part).sum()) for part in range(len(starts) - 1))
        similar = "" if options.verify is None else f", and of what is less than {options.verify:g} similar to it"
        return {
            **clusters.facts(),
            "documents removed": removed,
            "which stays": f"the {options.keep} of a cluster{similar}",
            "probability that a pair is found, by Jaccard similarity": {
                f"{s / 20:g}": round(1 - (1 - (s / 20) ** options.rows) ** options.bands, 4) for s in range(10, 20)
            },
        }

    def _no_signatures(self) -> np.ndarray:
        return np.empty((0, self._options.bands * self._options.rows), np.uint32)


def _lengths(folder: Path, part: int) -> Path:
    return folder / f"lengths-{part:06d}.npy"


def _signatures(folder: Path, part: int) -> Path:
    return folder / f"signatures-{part:06d}.npy"


def _edges(decision: Path, number: int) -> Path:
    return decision / f"edges-{number:06d}.npy"


def _join_range(found: HashRange, decision: Path, starts: np.ndarray) -> None:
    """Writes which documents have a band in common, each with the first that has it."""
    documents = starts[found.parts] + found.rows
    later = found.later()
    first = np.repeat(documents[found.starts[:-1]], np.diff(found.starts) - 1)
    np.save(_edges(decision, found.number), _different_pairs(first, documents[later]))


def _different_pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The pairs without repetitions, [different pairs, 2]."""
    pairs = np.stack([left, right], axis=1)[np.lexsort((right, left))]
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[is_new]


def _similarity(folder: Path, starts: np.ndarray, part: int, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The estimated Jaccard similarity of documents of a part with other documents, [n]."""
    signatures = np.load(_signatures(folder, part), mmap_mode="r")
    parts = np.searchsorted(starts, others, "right") - 1
    order = np.argsort(parts, kind="stable")
    similarities = np.empty(len(rows))
    for begin in range(0, len(rows), _COMPARED_AT_ONCE):
        chosen = order[begin : begin + _COMPARED_AT_ONCE]
        for other in np.unique(parts[chosen]).tolist():
            here = chosen[parts[chosen] == other]
            theirs = np.load(_signatures(folder, other), mmap_mode="r")
            similarities[here] = (signatures[rows[here]] == theirs[others[here] - starts[other]]).mean(axis=1)
    return similarities
