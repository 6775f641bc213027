"""An index of what evaluations say, n words at a time, and where that stands in other texts."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_llm.config import UserError
from lit_llm.config.references import EvaluationTexts
from lit_llm.data.cleaning.evaluations import Passage, evaluation_files, passages
from lit_llm.data.cleaning.ngrams import WordHashes, normalized, window_hashes, word_pattern

_FEWEST_BITS, _MOST_BITS = 10, 27
_SPARSENESS = 4  # 2^4 places for each run


@dataclass(frozen=True)
class EvaluationFile:
    """What of a file the index has.

    Attributes:
        name: Short name, which no other file of the index has.
        rows: How many there are.
        looked_for: How many of them have a run of words to look for; the others are too short.
        first_row: Where its rows begin in the index.
    """

    name: str
    rows: int
    looked_for: int
    first_row: int


@dataclass(frozen=True)
class Matches:
    """Where a text has runs of words of evaluations, by length, then by place.

    Attributes:
        places: Number of the word that each begins with, [m].
        lengths: Words of each, [m].
        runs: Number of each run in the index, [m].
    """

    places: np.ndarray
    lengths: np.ndarray
    runs: np.ndarray


class _Table:
    """Runs of one length: their hashes in order, and the rows that have each.

    Args:
        hashes: Of runs, [r], one that several rows have as often.
        rows: The row of each, [r].
        length: Words of a run.
        first: Number of the first run in the index.
    """

    def __init__(self, hashes: np.ndarray, rows: np.ndarray, length: int, first: int) -> None:
        order = np.lexsort((rows, hashes))
        hashes, rows = hashes[order], rows[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
        hashes, self.rows = hashes[new], rows[new]
        self.hashes, starts = np.unique(hashes, return_index=True)
        self.starts = np.append(starts, len(hashes))
        self.length, self.first = length, first
        # Most runs of a text are in no evaluation; this says so of nearly all of them without a search.
        bits = min(max(_FEWEST_BITS, len(self.hashes).bit_length() + _SPARSENESS), _MOST_BITS)
        self._shift = np.uint64(64 - bits)
        self._possible = np.zeros(1 << bits, bool)
        self._possible[self.hashes >> self._shift] = True

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (self.hashes, self.starts, self.rows, self._possible))

    def find(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of runs in a text of hashed words, and the number of each in the index."""
        windows = window_hashes(words, self.length)
        places = np.flatnonzero(self._possible[windows >> self._shift])
        at = np.searchsorted(self.hashes, windows[places])
        found = self.hashes[np.minimum(at, len(self.hashes) - 1)] == windows[places]
        return places[found], at[found] + self.first


class EvaluationIndex:
    """The runs of n words of evaluations; short texts as runs of their own length.

    In memory a run takes 8 bytes for its hash, 8 for its place, 4 for each row that has it, and 16 to 32 for a table
    that answers most questions at once: the 700,803 runs of the 7,473 rows of GSM8K take 31 MB.

    Args:
        options: The files, and what counts as a run.

    Attributes:
        files: What is known of each file, in order.
        runs: How many different runs there are.
        runs_of_row: How many different runs each row has, [rows].

    Raises:
        UserError: a file is missing, broken or empty, or all that it has is too short.
    """

    def __init__(self, options: EvaluationTexts) -> None:
        self._options = options
        self._words = WordHashes(normalized)
        self._collected: defaultdict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        self._tables: list[_Table] = []
        paths = evaluation_files(options.files)
        numbers: list[np.ndarray] = []
        self.files: list[EvaluationFile] = []
        first_row = 0
        for path, name in zip(paths, _short_names(paths), strict=True):
            rows = self._collect(path, first_row)
            self.files.append(EvaluationFile(name, len(rows), 0, first_row))
            numbers.append(rows)
            first_row += len(rows)
        self._numbers = np.concatenate(numbers)
        self._first_rows = np.array([file.first_row for file in self.files])
        self._make_tables()
        pairs = [table.rows for table in self._tables] or [np.zeros(0, np.int32)]
        self.runs_of_row = np.bincount(np.concatenate(pairs), minlength=len(self._numbers))
        for place, file in enumerate(self.files):
            looked_for = int(np.count_nonzero(self.runs_of_row[file.first_row : file.first_row + file.rows]))
            if not looked_for:
                raise UserError(
                    f"{paths[place]}: none of its {file.rows:,} rows is long enough to be looked for, with n "
                    f"{options.n}, short {options.short} and min_words {options.min_words}; set them lower"
                )
            self.files[place] = EvaluationFile(file.name, file.rows, looked_for, file.first_row)

    @property
    def bytes(self) -> int:
        """What the index takes in memory."""
        return sum(table.bytes for table in self._tables)

    def words_of(self, text: str) -> np.ndarray:
        """The hashes of the words of a text: [n]."""
        return self._words.of(word_pattern(text).findall(text))

    def find(self, text: str) -> Matches | None:
        """Where a text has runs of the evaluations; None where it has none."""
        words = self.words_of(text)
        found = [(table, *table.find(words)) for table in self._tables if table.length <= len(words)]
        found = [(table, places, runs) for table, places, runs in found if len(places)]
        if not found:
            return None
        return Matches(
            np.concatenate([places for _, places, _ in found]),
            np.concatenate([np.full(len(places), table.length) for table, places, _ in found]),
            np.concatenate([runs for _, _, runs in found]),
        )

    def rows_of(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each pair of one of the runs and a row that has it: places in `runs`, and rows of the index."""
        places, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        for table in self._tables:
            inside = np.flatnonzero((runs >= table.first) & (runs < table.first + len(table.hashes)))
            at = runs[inside] - table.first
            many = table.starts[at + 1] - table.starts[at]
            places.append(np.repeat(inside, many))
            ends = np.cumsum(many)
            within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - many, many)
            rows.append(table.rows[np.repeat(table.starts[at], many) + within])
        return np.concatenate(places), np.concatenate(rows)

    def file_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the file of each row."""
        return np.searchsorted(self._first_rows, rows, side="right") - 1

    def number_of(self, row: int) -> int:
        """The number that a row has in its file."""
        return int(self._numbers[row])

    def enough(self, matches: Matches) -> dict[int, np.ndarray]:
        """The files of which a text has enough: the number of each, and which matches are of it, [m]."""
        places, rows = self.rows_of(matches.runs)
        files = self.file_of(rows)
        result = {}
        for file in np.unique(files).tolist():
            own = np.unique(places[files == file])
            whole = bool((matches.lengths[own] < self._options.n).any())
            if whole or len(np.unique(matches.runs[own])) >= self._options.min_matches:
                result[file] = own
        return result

    def _collect(self, path: Path, first_row: int) -> np.ndarray:
        """Collects the runs of a file. Returns the numbers of its rows."""
        numbers: dict[int, int] = {}
        for passage in passages(path, self._options.fields):
            for number, _ in passage:
                numbers.setdefault(number, first_row + len(numbers))
            self._add(passage, numbers)
        if not numbers:
            raise UserError(f"{path}: no row with text; leave it out, or name other fields")
        return np.fromiter(numbers, np.int64, len(numbers))

    def _add(self, passage: Passage, row_of: dict[int, int]) -> None:
        texts = [(row_of[number], self.words_of(text)) for number, text in passage]
        for row, words in texts:
            self._add_short(words, row)
        if not texts:
            return
        whole = np.concatenate([words for _, words in texts])
        self._add_short(whole, texts[0][0])
        windows = window_hashes(whole, self._options.n)
        rows = np.repeat(np.array([row for row, _ in texts], np.int32), [len(words) for _, words in texts])
        self._collected[self._options.n].append((windows, rows[: len(windows)]))

    def _add_short(self, words: np.ndarray, row: int) -> None:
        if self._options.short == "whole" and self._options.min_words <= len(words) < self._options.n:
            run = (window_hashes(words, len(words)), np.array([row], np.int32))
            self._collected[len(words)].append(run)

    def _make_tables(self) -> None:
        self.runs = 0
        for length in sorted(self._collected):
            hashes, rows = (np.concatenate(arrays) for arrays in zip(*self._collected.pop(length), strict=True))
            if len(hashes):
                self._tables.append(_Table(hashes, rows, length, self.runs))
                self.runs += len(self._tables[-1].hashes)


def _short_names(paths: list[Path]) -> list[str]:
    """The name of each file, or its path where several have that name."""
    often = Counter(path.name for path in paths)
    return [path.name if often[path.name] == 1 else path.as_posix() for path in paths]
