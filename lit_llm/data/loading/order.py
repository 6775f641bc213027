"""Which window is sample i: a pure function of the seed, computed in constant memory.

A shuffled list of a billion indices takes 8 GB on every rank and must be saved to resume. A keyed permutation takes
none: the image of any index is computed when it is asked for (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002: a Feistel network over Z_a x Z_b, and cycle walking for the few values that fall outside).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import numpy as np

from lit_llm.config import UserError

_MASK = (1 << 64) - 1
_MAX_LENGTH = 1 << 62  # keeps both halves below 2^31, so that no sum in a round wraps
_SHIFT = np.uint64(32)


def mix(*parts: int) -> int:
    """A 64-bit hash of integers: the finaliser of SplitMix64 (Steele et al., 2014), chained."""
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


class Permutation:
    """A keyed shuffle of range(length) that stores nothing but its keys.

    Args:
        length: how many indices are permuted, 1 to 2^62.
        seed: any integer; each gives another shuffle.

    Raises:
        ValueError: length is out of bounds.
    """

    def __init__(self, length: int, seed: int) -> None:
        if not 1 <= length <= _MAX_LENGTH:
            raise ValueError(f"a permutation of {length} indices is outside 1 to 2^62")
        self.length = length
        # A round on few values mixes little, so that small sets need more of them.
        rounds = 6 if length >= 1 << 16 else 16
        # Halves of about sqrt(length) leave fewer than sqrt(length) values outside, so that walking is rare.
        rows = max(2, isqrt(length))
        columns = max(2, -(-length // rows))
        self._length = np.uint64(length)
        self._halves = (np.uint64(rows), np.uint64(columns))
        self._keys = [
            (np.uint64(mix(seed, round_, 0)), np.uint64(mix(seed, round_, 1) | 1)) for round_ in range(rounds)
        ]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """The images of `indices`.

        Args:
            indices: integers in [0, length), any shape.

        Returns:
            int64 array of the same shape.
        """
        values = self._encrypt(np.asarray(indices).astype(np.uint64))
        outside = values >= self._length
        while outside.any():
            # Walking on along the cycle is what keeps the map a bijection on the smaller set.
            values[outside] = self._encrypt(values[outside])
            outside = values >= self._length
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        """One pass of the Feistel network over rows x columns; each round changes one half by a hash of the other."""
        rows, columns = self._halves
        left, right = np.divmod(values, columns)
        for round_, (key, multiplier) in enumerate(self._keys):
            source = left if round_ % 2 else right
            hashed = (source ^ key) * multiplier
            hashed ^= hashed >> _SHIFT
            hashed *= multiplier
            hashed >>= _SHIFT
            if round_ % 2:
                right = (right + hashed) % columns
            else:
                left = (left + hashed) % rows
        return left * columns + right


@lru_cache(maxsize=64)
def _epoch_permutation(length: int, seed: int, source: int, epoch: int) -> Permutation:
    return Permutation(length, mix(seed, source, epoch))


class MixtureOrder:
    """Sample index -> (source, epoch, window) over one or more sources, for ever.

    Samples come in blocks of `block_size`. Each block gives every source the same number of slots, its share rounded by
    largest remainder, in one fixed shuffled order. Within a source, an epoch visits every window once in a shuffle of
    its own, keyed by (seed, source, epoch).

    Args:
        num_windows: windows in each source.
        weights: positive share of each source; they need not sum to 1.
        seed: keys every shuffle.
        block_size: slots in a block; shares are exact to 1 / block_size.

    Raises:
        UserError: a source has no window, or a weight is too small to get one slot in a block.
    """

    def __init__(
        self, num_windows: Sequence[int], weights: Sequence[float], seed: int, block_size: int = 65536
    ) -> None:
        if len(num_windows) != len(weights) or not num_windows:
            raise ValueError(f"{len(num_windows)} sources and {len(weights)} weights")
        if min(num_windows) < 1:
            raise UserError(f"path {int(np.argmin(num_windows))} of data.paths has no training window")
        self.num_windows = [int(count) for count in num_windows]
        self.seed = seed
        self.block_size = block_size
        self.quotas = _quotas(weights, block_size)
        self._slot_source, self._slot_rank = self._slots() if len(weights) > 1 else (None, None)

    def lookup(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples come from.

        Args:
            indices: [n] sample indices, at least 0.

        Returns:
            Source, epoch and window of each, int64 [n].
        """
        indices = np.asarray(indices, dtype=np.int64)
        if self._slot_source is None:
            sources, counts = np.zeros_like(indices), indices
        else:
            blocks, slots = np.divmod(indices, self.block_size)
            sources = self._slot_source[slots]
            counts = blocks * self.quotas[sources] + self._slot_rank[slots]
        epochs, positions = np.divmod(counts, np.asarray(self.num_windows)[sources])
        windows = np.empty_like(positions)
        for source, epoch in sorted(set(zip(sources.tolist(), epochs.tolist(), strict=True))):
            chosen = (sources == source) & (epochs == epoch)
            permutation = _epoch_permutation(self.num_windows[source], self.seed, source, epoch)
            windows[chosen] = permutation(positions[chosen])
        return sources, epochs, windows

    def _slots(self) -> tuple[np.ndarray, np.ndarray]:
        """The source of each slot of a block, and how many slots of that source come before it; int64 [block_size]."""
        shuffle = Permutation(self.block_size, mix(self.seed, -1))
        sources = np.repeat(np.arange(len(self.quotas)), self.quotas)[shuffle(np.arange(self.block_size))]
        ranks = np.empty_like(sources)
        for source, quota in enumerate(self.quotas):
            ranks[sources == source] = np.arange(quota)
        return sources, ranks


def _quotas(weights: Sequence[float], block_size: int) -> np.ndarray:
    """Slots of each source in a block, by largest remainder; int64 [sources]."""
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights) * block_size
    quotas = np.floor(shares).astype(np.int64)
    missing = block_size - int(quotas.sum())
    quotas[np.argsort(quotas - shares, kind="stable")[:missing]] += 1
    if quotas.min() < 1:
        source = int(np.argmin(quotas))
        raise UserError(
            f"the weight of path {source} of data.paths is {shares[source] / block_size:.1e} of the whole, too small "
            f"to get one sample in {block_size}; set data.weights, or merge the path with another"
        )
    return quotas
