"""Signatures of sets by independent hash functions, and their bands (Broder 1997; Leskovec et al., chapter 3).

The probability that two sets with the Jaccard similarity s agree in one place of their signatures is s, so that they
agree in all `rows` places of at least one of `bands` bands with the probability 1 - (1 - s^rows)^bands.

That holds for places that are independent of each other. Sketches that are faster by taking all places of a signature
from one hash (rensa's RMinHash among them) make them depend on each other, so that this curve is another one.
"""

from __future__ import annotations

import numpy as np

from lit_llm.data.cleaning.duplicates.shingles import random_words

_BLOCK = 2**15


class MinHash:
    """Signatures by multiplication of hashes of 32 bits with odd random numbers modulo 2^32.

    Args:
        bands: Bands of a signature.
        rows: Places of a band.
        seed: Of the hash functions.
    """

    def __init__(self, bands: int, rows: int, seed: int) -> None:
        self.bands, self.rows = bands, rows
        numbers = random_words(seed + 1, bands * rows + bands)
        self._factors = (numbers[: bands * rows] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self._salts = numbers[bands * rows :]

    def signatures(self, hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The least value of every hash function on each set.

        Args:
            hashes: Of the members, set after set, [n], uint32, evenly distributed.
            starts: Where those of each set begin, [sets + 1]; every set has at least one.

        Returns:
            [sets, bands * rows], uint32.
        """
        least = np.full((len(self._factors), len(starts) - 1), 2**32 - 1, np.uint32)
        values = np.empty(_BLOCK, np.uint32)
        for begin in range(0, len(hashes), _BLOCK):
            block = hashes[begin : begin + _BLOCK]
            first = int(np.searchsorted(starts, begin, "right")) - 1
            last = int(np.searchsorted(starts, begin + len(block), "left"))
            segments = np.maximum(starts[first:last] - begin, 0)
            for factor, of_function in zip(self._factors, least[:, first:last], strict=True):
                np.multiply(block, factor, out=values[: len(block)])
                np.minimum(of_function, np.minimum.reduceat(values[: len(block)], segments), out=of_function)
        return np.ascontiguousarray(least.T)

    def band_hashes(self, signatures: np.ndarray) -> np.ndarray:
        """A hash of each band, which no other band has.

        Args:
            signatures: [sets, bands * rows], uint32.

        Returns:
            [sets, bands], uint64.
        """
        hashes = np.broadcast_to(self._salts, (len(signatures), self.bands)).copy()
        for row in range(self.rows):
            hashes ^= signatures[:, row :: self.rows]
            hashes *= np.uint64(0x9E3779B97F4A7C15)
            hashes ^= hashes >> np.uint64(29)
        return hashes * np.uint64(0xBF58476D1CE4E5B9)
