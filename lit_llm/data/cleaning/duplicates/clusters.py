"""What the report says of groups of duplicates: how many of which size, and the largest with the names of some."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.data.sources.document import SourceDocument

EXAMPLES = 5
"""Groups that the report shows, and documents that it names of each."""


def size_histogram(sizes: np.ndarray) -> dict[str, int]:
    """Numbers of groups by size, in bins that end at powers of two: {"2": 17, "3-4": 5, "5-8": 1}.

    Args:
        sizes: Of the groups, [n], each at least 2.
    """
    bins = np.ceil(np.log2(sizes)).astype(int)
    return {
        _bin_name(int(number)): int(count) for number, count in zip(*np.unique(bins, return_counts=True), strict=True)
    }


def add_histograms(histograms: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of histograms with the same bins, smallest first."""
    total: dict[str, int] = {}
    for histogram in histograms:
        for name, count in histogram.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items(), key=lambda item: int(item[0].partition("-")[0])))


def _bin_name(number: int) -> str:
    first, last = 2 ** (number - 1) + 1, 2**number
    return str(last) if first == last else f"{first}-{last}"


class DocumentNames:
    """Names of the documents of a part, on disk, for the few that the report shows.

    Args:
        folder: Where they are.
        part: Number of the part.
    """

    def __init__(self, folder: Path, part: int) -> None:
        self._path = folder / f"names-{part:06d}.jsonl"

    def watch(self, documents: Iterable[SourceDocument]) -> Iterable[SourceDocument]:
        """Yields the documents, and writes their names."""
        with self._path.open("w", encoding="utf-8") as file:
            for document in documents:
                file.write(json.dumps([document.source, document.id]) + "\n")
                yield document

    def read(self, rows: Iterable[int]) -> list[dict[str, str]]:
        """Source and id of some documents, by their rows in the part, in the order given."""
        wanted = list(rows)
        found: dict[int, dict[str, Any]] = {}
        with self._path.open(encoding="utf-8") as file:
            for row, line in enumerate(file):
                if row in wanted:
                    source, name = json.loads(line)
                    found[row] = {"source": source, "id": name}
                    if len(found) == len(set(wanted)):
                        break
        return [found[row] for row in wanted]
