"""Which hashes do the parts of a corpus have in common? A sorted index on disk, looked through in bounded memory.

Each part's index is one .npy of fixed-width records in the order of their hash, in which a hash occurs once, whatever
is repeated within the part. All records with hashes of a range are therefore one slice of each part's file. The hashes
are cut into equal ranges, as many as it takes for the records of one range to fit the memory, and each range is read,
sorted and compared alone: nothing is copied on disk, and no hash has more records than there are parts, however common
it is.

With B bytes per record (`record_bytes`: 16, or 24 with a second half of the hash) and R records, the disk holds B R
bytes, and a range of R / 2^k records, which hashes fill evenly, needs at most 128 R / 2^k bytes of memory. Only what is
common to many parts makes a range larger than others, by 128 bytes per part for each such hash.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.data.cleaning.step import ParallelMap

_BYTES_IN_MEMORY = 128
_MOST_RANGES_LOG2 = 16


@dataclass(frozen=True)
class HashRange:
    """Records of all parts whose hashes lie in a range, in the order of hash and part.

    Attributes:
        number: Of the range, from 0.
        parts: Part of each record, [n], uint32.
        positions: Place of each record in the index of its part, [n], uint32.
        rows: First document of the part that has the hash, [n], uint32.
        amounts: How many documents of the part have it, [n], uint32.
        starts: Where the records of each hash begin, [hashes + 1]; the last one is n.
    """

    number: int
    parts: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    amounts: np.ndarray
    starts: np.ndarray

    def totals(self) -> np.ndarray:
        """How many documents of the corpus have each hash, [hashes], int64."""
        return np.add.reduceat(self.amounts.astype(np.int64), self.starts[:-1])

    def largest(self, chosen: np.ndarray, number: int) -> list[list[int]]:
        """The most frequent hashes with the first document that has each.

        Args:
            chosen: Which hashes count, [hashes], bool.
            number: How many are asked for.

        Returns:
            For each how many documents have it, and part and row of the first; of equally frequent ones the earlier.
        """
        totals, first = self.totals()[chosen], self.starts[:-1][chosen]
        best = np.lexsort((self.rows[first], self.parts[first], -totals))[:number]
        first = first[best]
        found: list[list[int]] = np.stack([totals[best], self.parts[first], self.rows[first]], axis=1).tolist()
        return found

    def later(self) -> np.ndarray:
        """The records that are not the first of their hash, [n - hashes]."""
        is_later = np.ones(len(self.parts), bool)
        is_later[self.starts[:-1]] = False
        return np.flatnonzero(is_later)

    def by_part(self, records: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields every part with those of `records` that are of it."""
        parts = self.parts[records]
        order = np.argsort(parts, kind="stable")
        parts, records = parts[order], records[order]
        for part in np.unique(parts).tolist():
            begin, end = np.searchsorted(parts, [part, part + 1])
            yield part, records[begin:end]


class HashIndex:
    """The index of a corpus in a folder, one file per part.

    Args:
        folder: Where the files are.
        name: What their names begin with.
        is_wide: Whether a hash has 128 bits, as two numbers of 64; otherwise it has 64.
    """

    def __init__(self, folder: Path, name: str = "hashes", is_wide: bool = False) -> None:
        self._folder, self._name = folder, name
        names = ["hash", "low"] if is_wide else ["hash"]
        self._dtype = np.dtype([*((name, "<u8") for name in names), ("row", "<u4"), ("amount", "<u4")])

    @property
    def record_bytes(self) -> int:
        """Size of a record on disk."""
        return self._dtype.itemsize

    def write(self, part: int, hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Writes the index of a part.

        Args:
            part: Its number.
            hashes: Hash of each occurrence, [n] or, if it is wide, [n, 2], uint64.
            rows: Document of the part that it occurs in, [n], not descending; no document has a hash twice.

        Returns:
            For each occurrence that is not the first of its hash in the part, its row and the row of the first.
        """
        columns = hashes.reshape(len(hashes), 2 if self._is_wide else 1)
        order = np.lexsort(columns.T[::-1])
        columns, rows = columns[order], rows[order]
        is_first = np.ones(len(rows), bool)
        is_first[1:] = (columns[1:] != columns[:-1]).any(axis=1)
        starts = np.flatnonzero(is_first)
        records = np.empty(len(starts), self._dtype)
        for number, column in enumerate(self._dtype.names[:-2]):  # type: ignore[index]  # the names of a record
            records[column] = columns[starts, number]
        records["row"] = rows[starts]
        records["amount"] = np.diff(starts, append=len(rows))
        np.save(self._path(part), records)
        return rows[~is_first], np.repeat(rows[starts], records["amount"])[~is_first]

    def read(self, part: int) -> np.ndarray:
        """The records of a part, with the fields hash, low (if it is wide), row and amount; read as they are used."""
        records: np.ndarray = np.load(self._path(part), mmap_mode="r")
        return records

    def compare(
        self, parts: int, memory_bytes: int, parallel: ParallelMap[Any], look: Callable[[HashRange], None]
    ) -> int:
        """Calls `look` with every range of hashes, each in one of the workers.

        Args:
            parts: How many parts there are.
            memory_bytes: What a range may take in memory.
            parallel: Runs a function over items on all workers.
            look: Can be pickled, and leaves what it finds in files.

        Returns:
            How many ranges there were.
        """
        number = sum(len(self.read(part)) for part in range(parts))
        bits = 0
        while number * _BYTES_IN_MEMORY > memory_bytes << bits and bits < _MOST_RANGES_LOG2:
            bits += 1
        parallel(partial(self._look, parts=parts, bits=bits, look=look), range(2**bits))
        return 2**bits

    def _look(self, number: int, parts: int, bits: int, look: Callable[[HashRange], None]) -> None:
        slices = [self._slice(part, number, bits) for part in range(parts)]
        total = sum(stop - start for start, stop in slices)
        records = np.empty(total, self._dtype)
        numbers, positions = np.empty(total, np.uint32), np.empty(total, np.uint32)
        at = 0
        for part, (start, stop) in enumerate(slices):
            if start < stop:
                here = slice(at, at + stop - start)
                records[here] = self.read(part)[start:stop]
                numbers[here], positions[here] = part, np.arange(start, stop)
                at += stop - start
        # Both sorts are stable: the records of a hash stay in the order of the parts.
        if self._is_wide:
            order = np.lexsort((records["low"], records["hash"]))
        else:
            order = np.argsort(records["hash"], kind="stable")
        records = records[order]
        is_first = np.ones(total + 1, bool)
        is_first[1:-1] = records["hash"][1:] != records["hash"][:-1]
        if self._is_wide:
            is_first[1:-1] |= records["low"][1:] != records["low"][:-1]
        starts = np.flatnonzero(is_first)
        rows, amounts = records["row"].copy(), records["amount"].copy()
        del records
        look(HashRange(number, numbers[order], positions[order], rows, amounts, starts))

    def _slice(self, part: int, number: int, bits: int) -> tuple[int, int]:
        """Where the records of a part begin and end whose hashes have `number` as their first bits."""
        records = self.read(part)
        if bits == 0:
            return 0, len(records)
        bounds = [number << (64 - bits), (number + 1) << (64 - bits)]
        start, stop = (bisect_left(records, bound, key=lambda record: int(record["hash"])) for bound in bounds)
        return start, stop

    @property
    def _is_wide(self) -> bool:
        return "low" in (self._dtype.names or ())

    def _path(self, part: int) -> Path:
        return self._folder / f"{self._name}-{part:06d}.npy"
