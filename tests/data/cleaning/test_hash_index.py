"""The index that all comparisons of documents share: right, the same whatever the memory, and bounded by it."""

from __future__ import annotations

import tracemalloc
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from corpus_steps import serial
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.cleaning.duplicates import exact_documents, exact_lines, near_duplicates
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
@given(PARTS, st.sampled_from([256, 800, 2**30]))
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
    assert (ranges > 1) == (128 * len(records) > memory_bytes)


def test_both_halves_of_a_wide_hash_count(tmp_path: Path) -> None:
    index = HashIndex(tmp_path, is_wide=True)
    assert index.record_bytes == 24
    for part, lows in enumerate([[5, 6, 5], [6, 7]]):
        hashes = np.array([[9, low] for low in lows], np.uint64)
        index.write(part, hashes, np.arange(len(lows), dtype=np.uint32))
    records, _ = compared(tmp_path, index, 2, 2**20)
    assert records == [(0, 0, 0, 2), (1, 0, 1, 1), (1, 1, 0, 1), (2, 1, 1, 1)]


@pytest.mark.parametrize("repeats", ["half of a part", "every part"])
@pytest.mark.parametrize(
    ("look", "is_wide"),
    [
        (exact_documents._mark_range, True),
        (partial(exact_lines._allow_range, most=1, keeps_first=True), False),
        (partial(near_duplicates._join_range, starts=np.arange(0, 80_001, 4000)), False),
    ],
    ids=["exact_documents", "exact_lines", "near_duplicates"],
)
def test_what_is_done_with_a_range_keeps_to_its_memory(tmp_path: Path, look: Any, is_wide: bool, repeats: str) -> None:
    """One hash that half of all documents have must not fill a range; in the other case every part has all hashes."""
    index, parts, rows, memory_bytes = HashIndex(tmp_path, is_wide=is_wide), 20, 4000, 500_000
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (rows, 2 if is_wide else 1), np.uint64)
    for part in range(parts):
        if repeats == "half of a part":
            hashes = random.integers(0, 2**64, hashes.shape, np.uint64)
            hashes[::2] = 12345
        index.write(part, hashes, np.arange(rows, dtype=np.uint32))
        np.save(exact_documents._marks(tmp_path, part), np.zeros(rows, np.uint8))
        np.save(exact_lines._allowed(tmp_path, part), np.zeros(rows, np.uint32))
    peaks: dict[int, int] = {}
    bound = memory_bytes + 2000 * parts  # what opening a file takes, per part, is no part of it

    def one_by_one(function: Any, items: range) -> None:
        for item in items:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            function(item)
            taken = tracemalloc.get_traced_memory()[1] - before
            peaks[item] = min(taken, peaks.get(item, taken))

    tracemalloc.start()
    for _ in range(2):  # a thread that an earlier test has left may take memory in between, but not twice
        ranges = index.compare(parts, memory_bytes, one_by_one, partial(look, decision=tmp_path))
        assert ranges == (16 if repeats == "half of a part" else 32)  # 40,020 or 80,000 records of at most 128 bytes
        if max(peaks.values()) < bound:
            break
    tracemalloc.stop()
    assert memory_bytes / 8 < max(peaks.values()) < bound


def test_ranges_can_go_to_other_processes(tmp_path: Path) -> None:
    index = HashIndex(tmp_path)
    index.write(0, np.array([1, 2], np.uint64), np.array([0, 1], np.uint32))
    assert index.compare(1, 128, serial, _check) == 2


def _check(found: HashRange) -> None:
    assert len(found.parts) == (2, 0)[found.number]
