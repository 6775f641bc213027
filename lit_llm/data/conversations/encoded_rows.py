"""Tokenised rows, and the streams of batches that are dealt out from them by number.

A row is what a file has: a conversation, a pair, a prompt. An item is what a batch is made of: a row or a pack of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_llm.data.loading.order import MixtureOrder
from lit_llm.data.loading.stream import Decodes

if TYPE_CHECKING:
    from lit_llm.data.conversations.reading import RowPlace

WIDTH_MULTIPLE = 8
"""Batches are as wide as a multiple of this, for the matrix units of GPUs."""


class Ragged:
    """Arrays of different lengths, stored as one: a million rows are two objects, which loader workers can share.

    Args:
        rows: the arrays.
        dtype: their common type.
    """

    def __init__(self, rows: Sequence[Sequence[int] | np.ndarray], dtype: type = np.int32) -> None:
        self._ends = np.cumsum([0, *map(len, rows)])
        self._values = np.concatenate([np.empty(0, dtype), *(np.asarray(row, dtype) for row in rows)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """One array [its length]: a view, not a copy."""
        return self._values[self._ends[index] : self._ends[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of each array, int64 [rows]."""
        return np.diff(self._ends)

    def parts(self) -> tuple[bytes, bytes]:
        """The lengths and the values as bytes, to be hashed: other arrays give other bytes."""
        return self._ends.tobytes(), self._values.tobytes()


class Items(ABC):
    """The tokenised rows of one split, and how batches are made of them.

    It is sent to loader workers, and therefore can be pickled and holds little besides the tokens.

    Args:
        places: file and row that each row is from.
    """

    def __init__(self, places: Sequence[RowPlace]) -> None:
        self.places = list(places)

    @abstractmethod
    def __len__(self) -> int:
        """How many items there are; there may be none."""

    @abstractmethod
    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        """Makes a batch, without its sample_ids; an item number of -1 asks for filler, over which no loss is taken."""

    @abstractmethod
    def rows_of(self, item: int) -> list[int]:
        """Returns the numbers of the rows that an item holds, at least one."""

    @abstractmethod
    def ids(self, row: int) -> list[int]:
        """Returns the tokens of a row, or of its first text where it has two."""

    @abstractmethod
    def supervised(self, row: int) -> list[bool]:
        """Returns for each of `ids` whether the loss is taken over it."""

    def texts(self, row: int) -> list[tuple[str, list[int], list[bool]]]:
        """Returns each text of a row: its name ("" if it is the only one), its tokens, and where the loss is taken."""
        return [("", self.ids(row), self.supervised(row))]

    @abstractmethod
    def token_lengths(self) -> np.ndarray:
        """Returns the number of tokens of each text, int64 [texts]."""

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """Yields the bytes of everything that a batch can hold, in the order of the rows, to be hashed."""

    @cached_property
    def digest(self) -> str:
        """blake2b (hexadecimal) of `content`."""
        digest = blake2b(digest_size=16)
        for part in self.content():
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()


class RowStream(Dataset):
    """Training items by sample index: an endless shuffled stream, in which each epoch has every item once.

    Args:
        items: at least one.
        seed: keys the shuffles.
    """

    def __init__(self, items: Items, seed: int) -> None:
        self.items = items
        self.order = MixtureOrder([len(items)], [1.0], seed)

    def lookup(self, sample_ids: Sequence[int]) -> list[int]:
        """The item of each sample."""
        return self.order.lookup(np.asarray(sample_ids, dtype=np.int64))[2].tolist()

    def locate(self, sample_ids: Sequence[int]) -> list[tuple[Path | str, int]]:
        """The file and the row of each sample; for a pack, those of its first row."""
        places = (self.items.places[self.items.rows_of(item)[0]] for item in self.lookup(sample_ids))
        return [(place.file, place.number) for place in places]

    def describe(self, sample_id: int, tokenizer: Decodes) -> tuple[str, str]:
        """Says where every row of a sample is, and gives their text."""
        rows = self.items.rows_of(self.lookup([sample_id])[0])
        place = "; ".join(str(self.items.places[row]) for row in rows)
        return place, "\n".join(tokenizer.decode(ids) for row in rows for _, ids, _ in self.items.texts(row))

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([sample_id])

    def __getitems__(self, sample_ids: Sequence[int]) -> dict[str, Any]:
        """A whole batch; its sample_ids, int64 [b], are those asked for."""
        return {**self.items.batch(self.lookup(sample_ids)), "sample_ids": torch.tensor(list(sample_ids))}


class RowEvaluation(Dataset):
    """Every item of a split exactly once, in order, dealt out to W ranks: rank r has items r, r + W, ...

    All ranks have the same number of items: those that would have one fewer end with filler (sample_ids -1), over which
    no loss is taken.

    Args:
        items: at least one.
        rank: this process.
        world_size: processes in all.
    """

    def __init__(self, items: Items, rank: int = 0, world_size: int = 1) -> None:
        self.items = items
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Items of this rank, the same for every rank."""
        return -(-len(self.items) // self.world_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A whole batch; its sample_ids, int64 [b], are item numbers."""
        positions = [index * self.world_size + self.rank for index in indices]
        items = [position if position < len(self.items) else -1 for position in positions]
        return {**self.items.batch(items), "sample_ids": torch.tensor(items)}


def padded_width(longest: int, most: int) -> int:
    """The number of columns of a batch whose longest row has `longest` tokens; at most `most`."""
    return min(-(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, most)
