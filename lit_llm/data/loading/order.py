"""Which window is sample i: a pure function of the seed, computed in constant memory.

A shuffled list of a billion indices takes 8 GB on every rank and must be saved to resume. A keyed permutation takes
none: the image of any index is computed when it is asked for (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002: a Feistel network over Z_a x Z_b, and cycle walking for the few values that fall outside).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import Any

import numpy as np

from lit_llm.config import UserError

_MASK = (1 << 64) - 1
_MAX_LENGTH = 1 << 62  # keeps both halves below 2^31, so that no sum in a round wraps
_SHIFT = np.uint64(32)
_ROUND = 1 << 16
"""Shares are exact over so many samples, or over one batch where that is more."""


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


@dataclass(frozen=True)
class Stretch:
    """Samples from one on that are dealt to the sources in the same shares, until the next stretch begins."""

    first: int
    """The first sample."""
    batch_size: int
    """Samples in a batch, the first of which begins with the stretch: each has its shares to one sample."""
    quotas: tuple[int, ...]
    """Samples of each source in a round of batches; a source with 0 is not read."""

    @classmethod
    def of(
        cls,
        weights: Sequence[float | Fraction],
        batch_size: int = 1,
        first: int = 0,
        names: Sequence[str] = (),
    ) -> Stretch:
        """The stretch with given shares, by largest remainder: over a round each is exact to one sample.

        Args:
            weights: share of each source, at least 0, in proportion to the others.
            batch_size: samples in a batch.
            first: the first sample.
            names: of the sources, for the error; none: they are paths by number.

        Raises:
            UserError: a weight is above 0, and too small to get one sample in a round.
        """
        batches = 1 << max(0, -(-_ROUND // batch_size) - 1).bit_length()
        size = batches * batch_size
        # the decimals that were written, as 0.7 + 0.2 + 0.1 in binary is not 1
        exact = [each if isinstance(each, Fraction) else Fraction(str(float(each))) for each in weights]
        shares = [weight * size / sum(exact) for weight in exact]
        quotas = [int(share) for share in shares]
        by_remainder = sorted(range(len(quotas)), key=lambda source: quotas[source] - shares[source])
        for source in by_remainder[: size - sum(quotas)]:
            quotas[source] += 1
        for source, quota in enumerate(quotas):
            if not quota and exact[source]:
                name = names[source] if names else f"path {source} of data.paths"
                raise UserError(
                    f"the weight of {name} is {float(shares[source] / size):.1e} of the whole, too small to get one "
                    f"sample in {size}; give it a larger weight, leave it out, or merge it with another"
                )
        return cls(first, batch_size, tuple(quotas))

    @property
    def shares(self) -> list[float]:
        """Share of each source."""
        return [quota / sum(self.quotas) for quota in self.quotas]

    def as_list(self) -> list[Any]:
        """Itself as lists and numbers, fit for JSON and a checkpoint; `Stretch(*values)` makes it again."""
        return [self.first, self.batch_size, list(self.quotas)]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Stretch:
        """The stretch that `as_list` gave."""
        first, batch_size, quotas = values
        return cls(first, batch_size, tuple(quotas))


class _Dealing:
    """Which source each sample of a stretch is from, and how many of that source came before it in the stretch.

    Batches are dealt by systematic sampling (Madow, 1949): the sources lie one after another along a line, each as long
    as its share of a batch, and a batch takes the points at whole numbers from an offset below 1. A piece of length x
    holds the floor or the ceiling of x of them, whatever the offset. The offsets of a round of M batches are the
    multiples of 1 / M, each once, so that a round has the quotas exactly; in the order of van der Corput, which
    spreads the first n of them evenly for every n, so that the shares of any part of a run are close, too.
    """

    def __init__(self, stretch: Stretch, seed: int) -> None:
        self.batch_size = stretch.batch_size
        self.quotas = np.array(stretch.quotas, dtype=np.int64)
        self.batches = int(self.quotas.sum()) // self.batch_size
        # on a line M times as long everything is a whole number: source s from bounds[s] on, and points M apart
        bounds = np.concatenate([[0], np.cumsum(self.quotas)])
        offsets = (_van_der_corput(self.batches) + mix(seed, -1) % self.batches) % self.batches
        # the first point of each source in each batch of a round [M, sources + 1], and the samples of it before [M, s]
        self._firsts = -((offsets[:, None] - bounds) // self.batches)
        taken = np.cumsum(np.diff(self._firsts, axis=1), axis=0)
        self._taken = np.concatenate([np.zeros((1, len(self.quotas)), dtype=np.int64), taken])
        self._shuffle = Permutation(self.batch_size, mix(seed, -2))(np.arange(self.batch_size))
        self._turn = np.uint64(mix(seed, -3) | 1)

    def lookup(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source of each sample, counted from the first of the stretch, and its number there; int64 [n] each."""
        batches, slots = np.divmod(samples, self.batch_size)
        rounds, batch = np.divmod(batches, self.batches)
        # one shuffle, begun at another place in each batch: ranks and micro-batches do not have sources of their own
        turns = ((batches.astype(np.uint64) * self._turn) >> _SHIFT) % np.uint64(self.batch_size)
        points = self._shuffle[(slots + turns.astype(np.int64)) % self.batch_size]
        sources = np.sum(self._firsts[batch, 1:] <= points[:, None], axis=1)
        before = rounds * self.quotas[sources] + self._taken[batch, sources]
        return sources, before + points - self._firsts[batch, sources]

    def counts(self, samples: int) -> np.ndarray:
        """Samples of each source among the first so many of the stretch; int64 [sources]."""
        batches, rest = divmod(samples, self.batch_size)
        rounds, batch = divmod(batches, self.batches)
        last, _ = self.lookup(np.arange(samples - rest, samples))
        return rounds * self.quotas + self._taken[batch] + np.bincount(last, minlength=len(self.quotas))


class MixtureOrder:
    """Sample index -> (source, epoch, window) over one or more sources, for ever.

    Samples come in batches. Each batch gives every source its share rounded up or down, and the shares of the samples
    so far are never more than a few samples off. Within a source, an epoch visits every window once in a shuffle of its
    own, keyed by (seed, source, epoch); a stretch with other shares goes on where the one before it stopped.

    Args:
        num_windows: windows in each source.
        shares: the stretches, of which the first begins at 0; or one share for each source, for all samples in batches
            of 1. The shares need not sum to 1.
        seed: keys every shuffle.

    Attributes:
        stretches: those that samples come in.

    Raises:
        UserError: a source has no window, or a weight is too small to get one sample in a round of batches.
    """

    def __init__(self, num_windows: Sequence[int], shares: Sequence[float] | Sequence[Stretch], seed: int) -> None:
        self.stretches = stretches_of(shares)
        if not num_windows or any(len(stretch.quotas) != len(num_windows) for stretch in self.stretches):
            raise ValueError(f"{len(num_windows)} sources, and a mix of others")
        if min(num_windows) < 1:
            raise UserError(f"path {int(np.argmin(num_windows))} of data.paths has no training window")
        self.num_windows = [int(count) for count in num_windows]
        self.seed = seed
        self._firsts = np.array([stretch.first for stretch in self.stretches], dtype=np.int64)
        if self._firsts[0] or (np.diff(self._firsts) <= 0).any():
            raise ValueError(f"stretches begin at {self._firsts.tolist()}")
        sizes = [stretch.batch_size for stretch in self.stretches[:-1]]
        if (np.diff(self._firsts) % np.array(sizes, dtype=np.int64)).any():
            raise ValueError(
                "a stretch is of whole batches: in a part of one, not every window that comes before is read"
            )
        # one source has all samples, and needs no tables
        self._dealings = [_Dealing(stretch, seed) for stretch in self.stretches] if len(num_windows) > 1 else []
        self._before = [np.zeros(len(num_windows), dtype=np.int64)]  # samples of each source before each stretch
        for dealing, length in zip(self._dealings, np.diff(self._firsts).tolist(), strict=False):
            self._before.append(self._before[-1] + dealing.counts(length))

    def lookup(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples come from.

        Args:
            indices: [n] sample indices, at least 0.

        Returns:
            Source, epoch and window of each, int64 [n].
        """
        indices = np.asarray(indices, dtype=np.int64)
        sources, counts = np.zeros_like(indices), indices.copy()
        if self._dealings:
            stretches = self._stretch(indices)
            for number in np.unique(stretches).tolist():
                chosen = stretches == number
                found, ranks = self._dealings[number].lookup(indices[chosen] - self._firsts[number])
                sources[chosen], counts[chosen] = found, self._before[number][found] + ranks
        epochs, positions = np.divmod(counts, np.asarray(self.num_windows)[sources])
        windows = np.empty_like(positions)
        for source, epoch in sorted(set(zip(sources.tolist(), epochs.tolist(), strict=True))):
            chosen = (sources == source) & (epochs == epoch)
            permutation = _epoch_permutation(self.num_windows[source], self.seed, source, epoch)
            windows[chosen] = permutation(positions[chosen])
        return sources, epochs, windows

    def counts(self, samples: int) -> list[int]:
        """How many of the first so many samples are from each source."""
        if not self._dealings:
            return [samples]
        number = int(self._stretch(np.array([max(samples - 1, 0)]))[0])
        return (self._before[number] + self._dealings[number].counts(samples - int(self._firsts[number]))).tolist()

    def _stretch(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._firsts, indices, side="right") - 1


def stretches_of(shares: Sequence[float] | Sequence[Stretch]) -> list[Stretch]:
    """The stretches themselves, or the one that has given shares; see `MixtureOrder`."""
    stretches = [each for each in shares if isinstance(each, Stretch)]
    return stretches or [Stretch.of([each for each in shares if not isinstance(each, Stretch)])]


def _van_der_corput(length: int) -> np.ndarray:
    """The numbers below a power of two with their bits in reverse; int64 [length]."""
    values = np.zeros(1, dtype=np.int64)
    while len(values) < length:
        values = np.concatenate([2 * values, 2 * values + 1])
    return values
