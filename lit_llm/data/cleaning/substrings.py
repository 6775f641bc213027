"""Repeated text taken out of a whole corpus, word for word: the step `substrings`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.config.substrings import SubstringsOptions
from lit_llm.data.cleaning.ngrams import WordHashes
from lit_llm.data.cleaning.repeats import (
    STRETCH,
    first_occurrences,
    joined,
    stretches,
    suffix_arrays,
    token_pattern,
    without_tokens,
)
from lit_llm.data.cleaning.step import ParallelMap
from lit_llm.data.sources.document import SourceDocument

_BATCH_TOKENS = 1 << 20
# Bytes of memory that a stretch, and a token in a suffix array, take at the most while a share is decided.
_STRETCH_BYTES = 128
_TOKEN_BYTES = 128
_LEAST_MEMORY = 2**20
# Shares are not made smaller than this for the sake of parallel work alone.
_SHARE_STRETCHES = 20_000
_MOST_SHARES = 64
_PLACED = np.dtype([("part", "<u4"), ("document", "<u4"), *STRETCH.descr])
_REPEATED = np.dtype([("part", "<u4"), ("start", "<u8"), ("windows", "<u8")])
# Plain arrays, each kind in a file for a part; `repeated` has one for a share.
_KINDS = {
    "tokens": np.dtype("<u8"),
    "starts": np.dtype("<i8"),
    "hashes": np.dtype("<u8"),
    "stretches": STRETCH,
    "repeated": _REPEATED,
    "removed": np.dtype("<i8"),
}


class RepeatedSubstrings:
    """Takes out of documents what has stood in an earlier place of the corpus, `length` tokens or more.

    Exactly those tokens go that are within a window of `length` tokens which also begins in an earlier document, or in
    the same one at least `length` tokens before. On disk the index takes 8 bytes for a token and some 1.6 for the
    stretches: twice the size of English text. Memory is that of a share of the stretches, and of the tokens of those
    whose hash is not the only one, in blocks.

    Args:
        options: How long a repetition is, and what becomes of the rest.

    Attributes:
        counts: Documents that were cut, cuts and bytes taken out.

    Raises:
        UserError: a library is not installed.
    """

    def __init__(self, options: SubstringsOptions) -> None:
        self.counts: Counter[str] = Counter()
        self._options = options
        self._words = WordHashes()
        suffix_arrays()

    def index(self, documents: Iterable[SourceDocument], part: int, folder: Path) -> None:
        """Writes the tokens of a part, where its documents begin, and its stretches in the order of their hashes."""
        starts: list[int] = []
        batch: list[np.ndarray] = []
        begun, total, found = 0, 0, []
        with _file(folder, "tokens", part).open("wb") as file:

            def flush() -> None:
                nonlocal begun
                tokens = np.concatenate([np.zeros(0, np.uint64), *batch])
                tokens.tofile(file)
                first = np.searchsorted(starts, begun)
                hashes, runs = stretches(tokens, np.array(starts[first:], np.int64) - begun, self._options.length)
                runs["start"] += np.uint64(begun)
                found.append((hashes, runs))
                begun += len(tokens)
                batch.clear()

            for document in documents:
                starts.append(total)
                batch.append(self._words.of(token_pattern(document.text).findall(document.text)))
                total += len(batch[-1])
                if total - begun >= _BATCH_TOKENS:
                    flush()
            flush()
        hashes, runs = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        order = np.argsort(hashes, kind="stable")
        _save(folder, "starts", part, np.array([*starts, total], np.int64))
        _save(folder, "hashes", part, hashes[order])
        _save(folder, "stretches", part, runs[order])

    def decide(self, parts: int, folder: Path, memory_bytes: int, parallel: ParallelMap[Any]) -> dict[str, Any]:
        """Decides which tokens of each part go; the shares of the hashes are decided one by one."""
        for old in folder.glob("repeated-*"):
            old.unlink()
        sizes = [len(_load(folder, "hashes", part)) for part in range(parts)]
        memory = max(_LEAST_MEMORY, memory_bytes)
        wanted = max(-(-sum(sizes) * _STRETCH_BYTES // memory), min(_MOST_SHARES, sum(sizes) // _SHARE_STRETCHES))
        shares = min(max(wanted, 1), max(sum(sizes), 1))
        share = _Share(self._options, folder, parts, shares, memory // _TOKEN_BYTES)
        parallel(share.decide, range(shares))
        parallel(partial(_write_removed, folder, self._options.length, shares), range(parts))
        removed = [_load(folder, "removed", part).reshape(-1, 2) for part in range(parts)]
        tokens = sum(int(_load(folder, "starts", part)[-1]) for part in range(parts))
        return {
            "tokens": tokens,
            "tokens repeated": sum(int((each[:, 1] - each[:, 0]).sum()) for each in removed),
            "stretches indexed": sum(sizes),
        }

    def apply(
        self, documents: Iterable[SourceDocument], part: int, folder: Path
    ) -> Iterator[tuple[SourceDocument, str | None]]:
        """Yields every document without its repetitions; it is dropped where too little is left."""
        starts = _load(folder, "starts", part)
        removed = _load(folder, "removed", part).reshape(-1, 2)
        for number, document in enumerate(documents):
            begin, end = int(starts[number]), int(starts[number + 1])
            own = removed[np.searchsorted(removed[:, 1], begin, "right") : np.searchsorted(removed[:, 0], end, "left")]
            if not len(own) or begin == end:
                yield document, None
                continue
            text, cuts = without_tokens(document.text, (np.clip(own, begin, end) - begin).tolist())
            if cuts:
                self.counts["documents cut"] += 1
                self.counts["cuts"] += cuts
                self.counts["bytes removed"] += len(document.text.encode()) - len(text.encode())
                if len(text) < self._options.min_characters:
                    yield document, f"fewer than {self._options.min_characters} characters beside repeated text"
                    continue
                document.text = text
            yield document, None


@dataclass(frozen=True)
class _Share:
    """One of several equal shares of all hashes, and how much of it may be in memory.

    Attributes:
        options: Of the step.
        folder: Of the step.
        parts: How many there are.
        shares: How many there are.
        capacity: Tokens that may be in a suffix array at once.
    """

    options: SubstringsOptions
    folder: Path
    parts: int
    shares: int
    capacity: int

    def decide(self, share: int) -> None:
        """Writes which windows of all parts are repetitions, of those whose hash is in this share."""
        records, groups = self._candidates(share)
        ends = np.cumsum(self._sizes(records))
        found, carried, begin = [np.zeros(0, _REPEATED)], records[:0], 0
        while begin < len(records):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + self.capacity, "right")))
            if end < len(records) and groups[end] == groups[end - 1]:
                # Equal windows are in the same group, so that a block of several takes only whole ones.
                whole = int(np.searchsorted(groups, groups[end]))
                end = whole if whole > begin else end
            repeated, others = self._repeated(np.concatenate([carried, records[begin:end]]))
            found.append(repeated)
            # A group that is too large for a block is gone through in several, with what has been new in it so far.
            carried = others if end < len(records) and groups[end] == groups[end - 1] else records[:0]
            begin = end
        result = np.concatenate(found)
        _save(self.folder, "repeated", share, result[np.lexsort((result["start"], result["part"]))])

    def _sizes(self, records: np.ndarray) -> np.ndarray:
        """Tokens of each stretch."""
        return records["windows"].astype(np.int64) + self.options.length - 1

    def _candidates(self, share: int) -> tuple[np.ndarray, np.ndarray]:
        """The stretches of a share that may repeat something, and a number for the hash of each, by hash and place."""
        low, high = (np.uint64(min(2**64 - 1, edge * 2**64 // self.shares)) for edge in (share, share + 1))
        hashes, records = [np.zeros(0, np.uint64)], [np.zeros(0, _PLACED)]
        for part in range(self.parts):
            of_part = _load(self.folder, "hashes", part)
            begin = np.searchsorted(of_part, low)
            end = np.searchsorted(of_part, high) if share + 1 < self.shares else len(of_part)
            runs = _load(self.folder, "stretches", part)[begin:end]
            starts = _load(self.folder, "starts", part)
            placed = np.empty(len(runs), _PLACED)
            placed["part"], placed["start"], placed["windows"] = part, runs["start"], runs["windows"]
            placed["document"] = np.searchsorted(starts, placed["start"], "right")
            hashes.append(of_part[begin:end])
            records.append(placed)
        hash_of, record = np.concatenate(hashes), np.concatenate(records)
        order = np.argsort(hash_of, kind="stable")
        hash_of, record = hash_of[order], record[order]
        _, group, often = np.unique(hash_of, return_inverse=True, return_counts=True)
        # What has a hash of its own repeats nothing, unless it is so long that it repeats itself.
        may_repeat = often[group] > 1
        if self.options.within_documents:
            may_repeat |= record["windows"] > self.options.length
        return record[may_repeat], group[may_repeat]

    def _repeated(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows of some stretches that are repetitions, and the stretches that have others as well."""
        length = self.options.length
        records = records[np.lexsort((records["start"], records["part"]))]
        sizes = self._sizes(records)
        offsets = np.cumsum(sizes) - sizes
        tokens = self._tokens(records, sizes, offsets)
        allowed = np.arange(len(tokens)) - np.repeat(offsets, sizes) < np.repeat(records["windows"], sizes)
        windows, first = first_occurrences(tokens, allowed, length)
        mine, theirs = (np.searchsorted(offsets, places, "right") - 1 for places in (windows, first))
        place = records["start"][mine].astype(np.int64) + windows - offsets[mine]
        place_of_first = records["start"][theirs].astype(np.int64) + first - offsets[theirs]
        other = (records["part"][mine] != records["part"][theirs]) | (
            records["document"][mine] != records["document"][theirs]
        )
        repeated = other | (self.options.within_documents & (place - place_of_first >= length))
        often = np.bincount(mine[repeated], minlength=len(records))
        return _as_runs(records["part"][mine[repeated]], place[repeated]), records[often < records["windows"]]

    def _tokens(self, records: np.ndarray, sizes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The tokens of stretches in the order of their parts, one after another."""
        tokens = np.empty(int(sizes.sum()), np.uint64)
        for part in np.unique(records["part"]).tolist():
            mine = np.flatnonzero(records["part"] == part)
            source = _load(self.folder, "tokens", part)
            begin, end = int(offsets[mine[0]]), int(offsets[mine[-1]] + sizes[mine[-1]])
            shift = records["start"][mine].astype(np.int64) - offsets[mine]
            tokens[begin:end] = source[np.arange(begin, end) + np.repeat(shift, sizes[mine])]
        return tokens


def _as_runs(parts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Windows by the part and the place where they begin, those that follow one another as one."""
    order = np.lexsort((places, parts))
    parts, places = parts[order], places[order]
    new = np.ones(len(places), bool)
    new[1:] = (np.diff(parts.astype(np.int64)) != 0) | (np.diff(places) > 1)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(places)) - 1
    runs = np.empty(len(first), _REPEATED)
    runs["part"], runs["start"] = parts[first], places[first]
    runs["windows"] = places[last] - places[first] + 1 if len(first) else 0
    return runs


def _write_removed(folder: Path, length: int, shares: int, part: int) -> None:
    """Writes which tokens of a part go, as intervals [m, 2]."""
    intervals = [np.zeros((0, 2), np.int64)]
    for share in range(shares):
        runs = _load(folder, "repeated", share)
        begin, end = np.searchsorted(runs["part"], [part, part + 1])
        starts = runs["start"][begin:end].astype(np.int64)
        intervals.append(np.stack([starts, starts + runs["windows"][begin:end].astype(np.int64) + length - 1], axis=1))
    _save(folder, "removed", part, joined(np.concatenate(intervals)))


def _file(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:05d}"


def _save(folder: Path, kind: str, number: int, array: np.ndarray) -> None:
    array.astype(_KINDS[kind]).tofile(_file(folder, kind, number))


def _load(folder: Path, kind: str, number: int) -> np.ndarray:
    """An array as `_save` has written it, by memory map; the intervals of `removed` are numbers in turn."""
    path = _file(folder, kind, number)
    return np.memmap(path, _KINDS[kind], "r") if path.stat().st_size else np.zeros(0, _KINDS[kind])
