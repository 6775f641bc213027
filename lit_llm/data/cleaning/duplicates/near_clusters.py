"""Which document of each group of near-duplicates stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.data.cleaning.duplicates.clusters import EXAMPLES, DocumentNames, add_histograms, size_histogram
from lit_llm.data.cleaning.duplicates.components import Components

_PENDING = 2
_CHUNK = 2**20

Similarity = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""Of documents of a part, given by their rows [n], with other documents of the corpus, by their numbers [n]."""


class NearClusters:
    """Groups of documents, of each of which one stays.

    The one that stays is the longest, or the first. Where a least similarity to it is asked for, what is less similar
    forms a group of its own, from which again one stays, and so on, so that every document that is removed is similar
    to one that stays. Takes 20 bytes per document, in files mapped into memory, and 60 per document of a part.

    Args:
        index: Folder with the names of the documents.
        folder: For its own files.
        starts: Number of the first document of each part, [parts + 1]; the last one is that of all documents.
        components: The groups.
    """

    def __init__(self, index: Path, folder: Path, starts: np.ndarray, components: Components) -> None:
        self._index, self._folder, self._starts, self._components = index, folder, starts, components
        documents = int(starts[-1])
        self._sizes = np.lib.format.open_memmap(folder / "sizes.npy", "w+", np.uint32, (documents,))
        for part in range(len(starts) - 1):
            roots, sizes = np.unique(self._roots(part), return_counts=True)
            self._sizes[roots] += sizes.astype(np.uint32)

    def choose(self, lengths: Callable[[int], np.ndarray], similarity: Similarity | None, least: float) -> int:
        """Marks the documents that are removed, in files for `removed`.

        Args:
            lengths: Of the documents of a part; the longest stays, of several the first.
            similarity: What to ask for the similarity with the one that stays; None: it does not matter.
            least: What it has to be.

        Returns:
            How often groups were formed.
        """
        documents = int(self._starts[-1])
        best = np.lib.format.open_memmap(self._folder / "best.npy", "w+", np.int64, (documents,))
        longest = np.lib.format.open_memmap(self._folder / "longest.npy", "w+", np.int64, (documents,))
        waiting = []
        for part in range(len(self._starts) - 1):
            marks = np.where(self._sizes[self._roots(part)] > 1, _PENDING, 0).astype(np.uint8)
            np.save(self._marks(part), marks)
            if marks.any():
                waiting.append(part)
        rounds = 0
        while waiting:
            rounds += 1
            for part in waiting:
                longest[self._roots(part)] = -1
            for part in waiting:
                self._compete(part, lengths(part), best, longest)
            waiting = [part for part in waiting if self._settle(part, best, similarity, least)]
        return rounds

    def removed(self, part: int) -> np.ndarray:
        """Whether each document of a part is removed, [documents], uint8."""
        marks: np.ndarray = np.load(self._marks(part))
        return marks

    def facts(self) -> dict[str, Any]:
        """What the report says of the groups."""
        histograms, clusters, largest = [], 0, np.empty(0, np.int64)
        for start in range(0, len(self._sizes), _CHUNK):
            sizes = np.asarray(self._sizes[start : start + _CHUNK])
            roots = np.flatnonzero(sizes > 1)
            clusters += len(roots)
            histograms.append(size_histogram(sizes[roots]))
            largest = np.concatenate([largest, roots + start])
            largest = largest[np.lexsort((largest, -self._sizes[largest].astype(np.int64)))[:EXAMPLES]]
        return {
            "clusters": clusters,
            "cluster sizes": add_histograms(histograms),
            "largest clusters": self._examples(largest.tolist()),
        }

    def _examples(self, roots: list[int]) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = [
            {"documents": int(self._sizes[root]), "kept": [], "removed": []} for root in roots
        ]
        for part in range(len(self._starts) - 1) if roots else ():
            of_part, marks = self._roots(part), self.removed(part)
            for root, example in zip(roots, shown, strict=True):
                for mark, name in enumerate(("kept", "removed")):
                    rows = np.flatnonzero((of_part == root) & (marks == mark))[: EXAMPLES - len(example[name])]
                    if len(rows):
                        example[name] += DocumentNames(self._index, part).read(rows.tolist())
        return shown

    def _compete(self, part: int, lengths: np.ndarray, best: np.ndarray, longest: np.ndarray) -> None:
        """Lets the pending documents of a part compete for being the best of their group."""
        rows = np.flatnonzero(self.removed(part) == _PENDING)
        roots, lengths = self._roots(part)[rows], lengths[rows].astype(np.int64)
        order = np.lexsort((rows, -lengths, roots))
        _, first = np.unique(roots[order], return_index=True)
        winners = order[first]
        winners = winners[lengths[winners] > longest[roots[winners]]]
        longest[roots[winners]] = lengths[winners]
        best[roots[winners]] = rows[winners] + self._starts[part]

    def _settle(self, part: int, best: np.ndarray, similarity: Similarity | None, least: float) -> bool:
        """Decides on the pending documents of a part; whether some still are."""
        marks = self.removed(part)
        rows = np.flatnonzero(marks == _PENDING)
        rivals = best[self._roots(part)[rows]]
        is_best = rivals == rows + self._starts[part]
        is_removed = ~is_best
        if similarity is not None:
            is_removed[is_removed] = similarity(part, rows[is_removed], rivals[is_removed]) >= least
        marks[rows[is_best]] = 0
        marks[rows[is_removed]] = 1
        np.save(self._marks(part), marks)
        return bool((marks == _PENDING).any())

    def _roots(self, part: int) -> np.ndarray:
        return self._components.find(np.arange(self._starts[part], self._starts[part + 1]))

    def _marks(self, part: int) -> Path:
        return self._folder / f"duplicates-{part:06d}.npy"
