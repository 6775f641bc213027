"""The index that all comparisons of documents share: right, the same whatever the memory, and bounded by it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from corpus_steps import serial
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.cleaning.duplicates.hash_index import HashIndex, HashRange

HASHES = st.sampled_from([0, 1, 2**32, 2**63 - 1, 2**63, 2**63 + 2**40, 3 * 2**62, 2**64 - 2, 2**64 - 1])
PARTS = st.lists(st.lists(st.sets(HASHES, max_size=5), max_size=6), min_size=1, max_size=5)


def compared(folder: Path, index: HashIndex, parts: int, memory_bytes: int) -> tuple[list[tuple[int, ...]], int]:
    """The records as (number of the hash among all, part, row, amount), and how many ranges there were."""
    ranges: dict[int, HashRange] = {}

    def keep(function: object, items: range) -> None:
        for item in reversed(items):
            function(item)  # type: ignore[operator]

    number = index.compare(parts, memory_bytes, keep, lambda found: ranges.__setitem__(found.number, found))
    records, hashes = [], 0
    for _, found in sorted(ranges.items()):
        for start, stop in zip(found.starts[:-1], found.starts[1:], strict=True):
            for i in range(start, stop):
                records.append((hashes, int(found.parts[i]), int(found.rows[i]), int(found.amounts[i])))
                entry = index.read(int(found.parts[i]))[found.positions[i]]
                assert (entry["row"], entry["amount"]) == (found.rows[i], found.amounts[i])
            hashes += 1
        assert found.totals().sum() == found.amounts.sum()
    return records, number


@settings(max_examples=40, deadline=None)
@given(PARTS, st.sampled_from([160, 500, 2**30]))
def test_records_are_those_of_a_plain_search(parts: list[list[set[int]]], memory_bytes: int) -> None:
    with TemporaryDirectory() as folder:
        index = HashIndex(Path(folder))
        repeated = []
        for part, rows in enumerate(parts):
            pairs = [(value, row) for row, values in enumerate(rows) for value in sorted(values)]
            hashes = np.array([value for value, _ in pairs], np.uint64)
            later, first = index.write(part, hashes, np.array([row for _, row in pairs], np.uint32))
            repeated += sorted((part, int(a), int(b)) for a, b in zip(first, later, strict=True))
        records, ranges = compared(Path(folder), index, len(parts), memory_bytes)

    having: dict[int, dict[int, list[int]]] = {}
    for part, rows in enumerate(parts):
        for row, values in enumerate(rows):
            for value in values:
                having.setdefault(value, {}).setdefault(part, []).append(row)
    assert records == [
        (number, part, rows_of[0], len(rows_of))
        for number, (_, by_part) in enumerate(sorted(having.items()))
        for part, rows_of in sorted(by_part.items())
    ]
    assert repeated == sorted(
        (part, rows_of[0], row)
        for by_part in having.values()
        for part, rows_of in by_part.items()
        for row in rows_of[1:]
    )
    assert (ranges > 1) == (80 * len(records) > memory_bytes)


def test_both_halves_of_a_wide_hash_count(tmp_path: Path) -> None:
    index = HashIndex(tmp_path, is_wide=True)
    assert index.record_bytes == 24
    for part, lows in enumerate([[5, 6, 5], [6, 7]]):
        hashes = np.array([[9, low] for low in lows], np.uint64)
        index.write(part, hashes, np.arange(len(lows), dtype=np.uint32))
    records, _ = compared(tmp_path, index, 2, 2**20)
    assert records == [(0, 0, 0, 2), (1, 0, 1, 1), (1, 1, 0, 1), (2, 1, 1, 1)]


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_comparison_keeps_to_its_memory(tmp_path: Path, is_wide: bool) -> None:
    """Half of all documents are the same one, which must not fill a range."""
    index, parts, rows, memory_bytes = HashIndex(tmp_path, is_wide=is_wide), 20, 4000, 500_000
    random = np.random.default_rng(0)
    for part in range(parts):
        hashes = random.integers(0, 2**64, (rows, 2 if is_wide else 1), np.uint64)
        hashes[::2] = 12345
        index.write(part, hashes, np.arange(rows, dtype=np.uint32))
    peaks = []

    def look(found: HashRange) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])

    def one_by_one(function: object, items: range) -> None:
        for item in items:
            tracemalloc.reset_peak()
            function(item)  # type: ignore[operator]

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    ranges = index.compare(parts, memory_bytes, one_by_one, look)
    tracemalloc.stop()
    assert ranges == 8  # 40,020 records of at most 80 bytes
    # What np.load itself holds, once per part, is no part of it.
    assert memory_bytes / 4 < max(peaks) - before < memory_bytes + 2000 * parts


def test_ranges_can_go_to_other_processes(tmp_path: Path) -> None:
    index = HashIndex(tmp_path)
    index.write(0, np.array([1, 2], np.uint64), np.array([0, 1], np.uint32))
    assert index.compare(1, 80, serial, _check) == 2


def _check(found: HashRange) -> None:
    assert len(found.parts) == (2, 0)[found.number]
